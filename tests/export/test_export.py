"""`sslkit export`: each format as a program without sslkit loads it, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import sslkit
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.cli import main
from sslkit.data.evaluation_images import evaluation_batches
from sslkit.data.pack_writer import only_writer
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError, ExportError, RecipeError, SSLKitError
from sslkit.experiment.stores import open_stores
from sslkit.recipe import load_recipe
from sslkit.workflows.evaluate.weight_files import evaluate_weights
from sslkit.workflows.export import preprocessing, torch_format
from sslkit.workflows.export.export import Exported, export_encoder
from sslkit.workflows.export.round_trip import TOLERANCE
from sslkit.workflows.export.sample_images import make_probe
from sslkit.workflows.export.source import open_source
from sslkit.workflows.train import start
from tests.conftest import TINY
from tests.host.plugin_distributions import write_distribution

onnx_installed = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not onnx_installed, reason="the extra `onnx` is not installed")
FORMATS = ["timm", pytest.param("onnx", marks=needs_onnx), "torch-export"]


def train(folder: Path, *overrides: str) -> Path:
    folder.mkdir(exist_ok=True)
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY + f"runs_dir: {folder / 'runs'}\n")
    return start(recipe, ["train.max_steps=2", *overrides], display=Silent()).run_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that was trained and evaluated."""
    return train(tmp_path_factory.mktemp("run"), "backbone.normalize=cifar10")


@pytest.fixture(scope="module", params=FORMATS)
def exported(
    run: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """An export of that run in each format."""
    folder = tmp_path_factory.mktemp(request.param)
    return export_encoder(run, request.param, folder / "new" / "export")


def images_of(run: Path) -> Tensor:
    """The test images as the encoder takes them."""
    test = open_stores(load_recipe(run / "recipe.resolved.yaml"), Silent()).test
    assert test is not None
    preprocess = sslkit.load_encoder(run).preprocess
    return torch.cat(list(evaluation_batches(test, preprocess, 20, "cpu")))


def with_timm(folder: Path) -> Callable[[Tensor], Tensor]:
    described = json.loads((folder / "preprocess.json").read_text())
    model = timm.create_model(
        "test_resnet", checkpoint_path=str(folder / "model.safetensors"), num_classes=0
    ).eval()
    mean, std = torch.tensor(described["mean"]), torch.tensor(described["std"])
    return lambda images: model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))


def with_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def with_torch_export(folder: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(folder / "encoder.pt2").module()


LOADERS = {"timm": with_timm, "onnx": with_onnx, "torch-export": with_torch_export}


def test_round_trip(run: Path, exported: Exported) -> None:
    out, format = exported.folder, exported.format
    assert exported.file.is_file()
    assert exported.images == "32 test images of synthetic"
    assert not exported.synthetic
    assert exported.difference.relative <= TOLERANCE
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in [out, *out.iterdir()])

    images, encoder = images_of(run), sslkit.load_encoder(run)
    embed = LOADERS[format](out)
    with torch.no_grad():
        expected = encoder(images)
        found = torch.cat([embed(part) for part in torch.split(images, [1, 7, len(images) - 8])])
    assert (found - expected).abs().max() <= 1e-5 * expected.square().mean().sqrt()

    described = json.loads((out / "preprocess.json").read_text())
    assert described["normalization_inside"] == (format != "timm")
    assert described["input"]["shape"] == ["batch", 3, 16, 16]
    assert described["output"]["shape"] == ["batch", encoder.num_features]
    assert described["mean"] == [0.4914, 0.4822, 0.4465]


def test_model_card(run: Path, exported: Exported) -> None:
    card = (exported.folder / "README.md").read_text()
    results = json.loads((run / "results.json").read_text())
    (knn,) = [row for row in results["comparison"] if (row["protocol"], row["metric"]) ==
              ("knn", "top1")]  # fmt: skip
    measured = knn["values"]["trained"]
    interval = f"[{measured['low']:.4g}, {measured['high']:.4g}], 48 images"
    assert f"| knn | top1 | {measured['value']:.4g} {interval} |" in card
    assert "32 test images of synthetic" in card
    assert f"torch {torch.__version__.partition('+')[0]}" in card
    assert str(run.parent) not in card  # paths of this machine are nobody's business
    assert max(map(len, card.splitlines())) < 700

    code = card.partition("```python\n")[2].partition("```")[0]
    code = code.replace(exported.file.name, str(exported.file))
    images = torch.zeros(2, 3, 16, 16)
    names: dict[str, Any] = {"images": images.numpy() if exported.format == "onnx" else images}
    exec(code, names)  # noqa: S102 - the card must say what works
    assert tuple(names["features"].shape) == (2, sslkit.load_encoder(run).num_features)


def test_timm_folder_takes_a_classifier(run: Path, tmp_path: Path) -> None:
    folder = export_encoder(run, "timm", tmp_path / "export").folder
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    images = images_of(run)
    with torch.no_grad():
        assert model(images).shape == (len(images), 7)
        normalized = sslkit.load_encoder(run).normalized(images)
        pooled = model.forward_head(model.forward_features(normalized), pre_logits=True)
        assert torch.allclose(pooled, sslkit.load_encoder(run)(images), atol=1e-5)
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, 16, 16)
    assert tuple(config["mean"]) == (0.4914, 0.4822, 0.4465)


@pytest.mark.slow  # 7 seconds
@pytest.mark.parametrize("format", ["timm", "torch-export"])
def test_vit_on_grey_images(tmp_path: Path, format: str) -> None:
    block = "{name: timm, model: test_vit, patch_size: 4, pool: avg, normalize: none}"
    grey = ["data={name: digits, size: 16}", f"backbone={block}", "augmentation.saturation=0"]
    run = train(tmp_path, *grey, "augmentation.hue=0", "augmentation.grayscale_probability=0",
                "evaluate=[]")  # fmt: skip
    made = export_encoder(run, format, tmp_path / "export")
    assert made.images == "32 test images of digits"
    card = (made.folder / "README.md").read_text()
    assert "The run was not evaluated." in card
    if format == "timm":
        assert "img_size=16, patch_size=4, global_pool='avg', in_chans=1" in card


def test_checkpoint_and_file(run: Path, tmp_path: Path) -> None:
    (checkpoint,) = (run / "checkpoints").glob("*.pt")
    made = export_encoder(checkpoint, "timm", tmp_path / "checkpoint")
    assert not made.synthetic
    assert "Not measured" in (made.folder / "README.md").read_text()

    alone = tmp_path / "copied.safetensors"
    alone.write_bytes((run / "encoder.safetensors").read_bytes())
    made = export_encoder(alone, "timm", tmp_path / "alone")
    assert made.synthetic
    assert made.images == "32 synthetic images (the encoder stands alone)"
    assert "the encoder stands alone" in (made.folder / "README.md").read_text()


def test_data_that_is_gone(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("recipe.resolved.yaml", "environment.json", "encoder.safetensors"):
        (moved / name).write_bytes((run / name).read_bytes())
    recipe = moved / "recipe.resolved.yaml"
    text = recipe.read_text()
    before = text[text.index("data:") : text.index("augmentation:")]
    recipe.write_text(text.replace(before, "data: {name: image_folder, train: /nowhere}\n"))
    probe = make_probe(open_source(moved))
    assert probe.synthetic
    assert "the data cannot be read" in probe.origin
    assert "/nowhere" in probe.origin
    images = probe.batch(sslkit.load_encoder(run).preprocess)
    assert images.shape == (32, 3, 16, 16)
    assert images.std() > 0.1
    assert torch.equal(images, make_probe(open_source(moved)).batch(
        sslkit.load_encoder(run).preprocess))  # fmt: skip


# --- What is not kept -----------------------------------------------------------------------------


def refused(run: Path, format: str, out: Path) -> str:
    """The message; nothing may be left behind."""
    with pytest.raises(ExportError) as error:
        export_encoder(run, format, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_changed_weight(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TimmBackbone.export_state

    def broken(self: TimmBackbone) -> dict[str, Tensor]:
        state = honest(self)
        first = next(iter(state))
        return {**state, first: 1.001 * state[first]}

    monkeypatch.setattr(TimmBackbone, "export_state", broken)
    message = refused(run, "timm", tmp_path / "x" / "export")
    assert "not kept: its features differ from the encoder's by up to" in message
    assert "on 32 test images of synthetic; at most 1e-05 is allowed" in message


def test_a_missing_weight(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TimmBackbone.export_state

    def broken(self: TimmBackbone) -> dict[str, Tensor]:
        return dict(list(honest(self).items())[1:])

    monkeypatch.setattr(TimmBackbone, "export_state", broken)
    message = refused(run, "timm", tmp_path / "x" / "export")
    assert "not kept: loaded again, it fails" in message
    assert "Missing key" in message


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("format", ["timm", "torch-export"])
def test_wrong_preprocessing(
    run: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = preprocessing.describe

    def broken(*arguments: object) -> dict[str, object]:
        described = honest(*arguments)  # type: ignore[arg-type]
        inside = described["normalization_inside"]
        return {**described, "normalization_inside": not inside}

    monkeypatch.setattr(preprocessing, "describe", broken)
    assert "its features differ" in refused(run, format, tmp_path / "x" / "export")


BACKBONES = """
    import torch
    from torch import nn
    from sslkit.api import Backbone, Preprocess

    class Small(Backbone):
        def __init__(self, config, *, channels, image_size):
            super().__init__(config)
            self.conv = nn.Conv2d(channels, 8, 3)
            self.num_features = 8
            nothing, one = (0.0,) * channels, (1.0,) * channels
            self.preprocess = Preprocess(image_size, image_size, "bilinear", nothing, one)

        def forward(self, images):
            return self.conv(images).relu().mean(dim=(2, 3))

    class Branching(Small):
        def forward(self, images):
            features = super().forward(images)
            return features if float(features.sum()) > 1.0 else -features

    class Restless(Small):
        def forward(self, images):
            features = super().forward(images)
            return features + 0.01 * torch.rand_like(features)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed plugin with backbones that are not timm's."""
    hooks = """
        from sslkit import hookimpl

        @hookimpl
        def register_backbones():
            names = ("Small", "Branching", "Restless")
            return {name.lower(): f"export_nets.nets:{name}" for name in names}
    """
    files = {"export_nets/__init__.py": hooks, "export_nets/nets.py": BACKBONES}
    write_distribution(tmp_path / "site", "export-nets", files, "nets = export_nets")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield
    for name in [name for name in sys.modules if name.startswith("export_nets")]:
        del sys.modules[name]


@pytest.mark.slow  # 4 seconds
@pytest.mark.usefixtures("plugin")
def test_backbones_of_plugins(tmp_path: Path) -> None:
    run = train(tmp_path, "backbone={name: small}")
    message = refused(run, "timm", tmp_path / "x" / "export")
    assert "the backbone Small is no model of timm" in message
    for format in ("torch-export", *(["onnx"] if onnx_installed else [])):
        assert export_encoder(run, format, tmp_path / format).difference.relative <= TOLERANCE


@pytest.mark.slow  # 8 seconds
@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("format", FORMATS[1:])
def test_networks_that_no_graph_can_be(tmp_path: Path, format: str) -> None:
    branching = train(tmp_path / "branching", "backbone={name: branching}", "evaluate=[]")
    message = refused(branching, format, tmp_path / "x" / "export")
    assert "the backbone 'branching' of export-nets" in message
    restless = train(tmp_path / "restless", "backbone={name: restless}", "evaluate=[]")
    message = refused(restless, format, tmp_path / "x" / "export")
    assert "its features differ" in message


@pytest.mark.slow  # 6 seconds
def test_a_stem_that_timm_has_not(tmp_path: Path) -> None:
    run = train(tmp_path, "backbone={name: timm, model: resnet10t, stem: small}", "evaluate=[]")
    message = refused(run, "timm", tmp_path / "x" / "export")
    assert "timm has no resnet10t with stem: small; use --format onnx" in message
    assert export_encoder(run, "torch-export", tmp_path / "pt2").difference.relative <= TOLERANCE


def test_what_would_be_unpickled(tmp_path: Path) -> None:
    path = tmp_path / torch_format.FILE
    entries = {"weight": {"use_pickle": False}, "odd": {"use_pickle": True}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/weights/model_weights_config.json", json.dumps(
            {"config": entries}))  # fmt: skip
    with pytest.raises(
        ExportError, match=r"odd in encoder\.pt2 could only be loaded by unpickling"
    ):
        torch_format.load(tmp_path)

    buffer = io.BytesIO()
    torch.save((Path("not a tensor"),), buffer, pickle_module=pickle)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/sample_inputs/model.pt", buffer.getvalue())
    with pytest.raises(ExportError, match="sample_inputs"):
        torch_format.load(tmp_path)


def test_packages_that_are_missing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if "onnx" in name else find(name, *a)
    )
    message = refused(run, "onnx", tmp_path / "x" / "export")
    assert "needs onnx, onnxscript, onnxruntime, not installed here" in message
    assert "pip install 'sslkit[onnx]'" in message


# --- The command ----------------------------------------------------------------------------------


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return int(exit_.value.code or 0)


def test_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("export", str(run), "--format", "timm", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    folder = Path("exports", f"{run.name}-timm")
    assert Path(document["folder"]) == folder.absolute()
    assert document["relative_difference"] <= document["tolerance"] == 1e-5
    assert document["synthetic"] is False

    assert command("export", str(run), "--format", "timm") == 2
    assert "exists already" in capsys.readouterr().err
    assert command("export", str(run), "--format", "timm", "-O", "here") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'here'}: the features of the encoder")

    assert command("export", str(run), "--format", "tflite") == 2
    assert "valid is timm, onnx, torch-export" in capsys.readouterr().err
    assert command("export", str(tmp_path), "--format", "timm", "-O", "no") == 2
    assert "not a run folder" in capsys.readouterr().err
    assert command("export", "nowhere.pt", "--format", "timm", "-O", "no") == 2
    assert "nowhere.pt" in capsys.readouterr().err
    assert not Path("no").exists()


def test_stopped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sslkit.workflows.export.export.compare", interrupt)
    with pytest.raises(Exception, match="nothing was kept"):
        export_encoder(run, "timm", tmp_path / "x" / "export")
    assert not list((tmp_path / "x").iterdir())


def test_existing_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exists already"):
        export_encoder(run, "timm", tmp_path)
    assert isinstance(export_encoder(run, "timm", tmp_path / "free"), Exported)
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"--out .*/file/x: cannot be made \(.*choose another"):
        export_encoder(run, "timm", tmp_path / "file" / "x")


@pytest.mark.slow  # 3 seconds
def test_weights_that_were_measured(run: Path, tmp_path: Path) -> None:
    """From where they were; the card says nothing of a training, and the folder has no encoder."""
    evaluated = evaluate_weights(
        None,
        run.parents[1] / "tiny.yaml",
        ["knn"],
        [f"backbone.weights={run}", f"runs_dir={tmp_path / 'runs'}", "backbone.normalize=cifar10"],
        Silent(),
    )
    assert evaluated.kept is not None
    out = export_encoder(evaluated.kept, "torch-export", tmp_path / "out").folder
    images = torch.rand(3, 3, 16, 16)
    graph = torch.export.load(out / "encoder.pt2").module()
    with torch.no_grad():
        assert torch.equal(graph(images), sslkit.load_encoder(run)(images))
    card = (out / "README.md").read_text()
    assert "the weights were measured and not trained here" in card
    assert "simclr" not in card
    with pytest.raises(CheckpointError, match=r"measured here and not trained.* `backbone` in"):
        sslkit.load_encoder(evaluated.kept)


@pytest.mark.slow  # 9 seconds
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    """torch's own writer of archives ends the process: the limit stands for a disk that is full."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from sslkit.workflows.export import torch_format\n"
        "graph = torch.export.export(torch.nn.Linear(200, 200), (torch.zeros(1, 200),))\n"
        "torch_format.traced = lambda source: graph\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: torch_format.write(None, Path(sys.argv[1]))\n"
        "except OSError as error: print('refused', error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("refused")


def test_of_large_images_there_are_fewer(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is what the file says: 32 images of 16,384 x 16,384 pixels would take 103 GB."""
    monkeypatch.setattr("sslkit.workflows.export.sample_images._MOST_VALUES", 3 * 16 * 16 * 5)
    assert len(make_probe(open_source(run)).images) == 5
    shutil.copy(run / "encoder.safetensors", tmp_path / "alone.safetensors")
    exported = export_encoder(tmp_path / "alone.safetensors", "timm", tmp_path / "out")
    assert exported.images.startswith("5 synthetic images")
    monkeypatch.setattr("sslkit.workflows.export.sample_images._MOST_VALUES", 1)
    assert len(make_probe(open_source(tmp_path / "alone.safetensors")).images) == 1


@pytest.mark.slow  # 16 seconds
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["export", str(run / "encoder.safetensors"), "--format", format, "--out", str(out)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: cannot be written (")
    assert "File too large" in error
    assert error.endswith("give the command again")
    assert not list(tmp_path.iterdir())
    stale = tmp_path / ".out.abcd_123.tmp"  # of a process that was killed
    (stale / "folder").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_processes_do_not_export_to_one_folder(run: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "out"), pytest.raises(SSLKitError, match="another process"):
        export_encoder(run / "encoder.safetensors", "timm", tmp_path / "out")
