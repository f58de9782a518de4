"""What a run does besides being exact: it stops on NaN, saves, reports, and measures honestly."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import LossInput, OptimizerConfig
from sslkit.builtin.losses import NTXent
from sslkit.engine.display import Silent
from sslkit.engine.loss_meter import LossMeter, NotFiniteError
from sslkit.engine.online_probe import OnlineProbe
from sslkit.engine.optimization import scaled_lr
from sslkit.engine.signals import StopSignals
from sslkit.errors import CheckpointError, PluginError, RecipeError, TrainingError
from sslkit.experiment.encoder import load_encoder
from sslkit.experiment.resolve import resolve_compile, resolve_device
from sslkit.nn.functional import nt_xent
from sslkit.parallel.world import OneProcess
from sslkit.runs.checkpoint import Checkpoints, load
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start
from sslkit.workflows.validate import validate


def test_not_finite_loss_stops_the_run(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        start(
            str(tiny),
            ["optimizer={name: sgd, lr: 1e30}", "train.checkpoint_every_steps=1"],
            display=Silent(),
        )
    message = str(caught.value)
    (run_dir,) = (tmp_path / "runs").iterdir()
    last = sorted((run_dir / "checkpoints").iterdir())[-1]
    assert "\n" not in message
    assert "the loss is" in message
    assert "at learning rate" in message
    assert "lower optimizer.lr" in message
    assert str(last) in message
    step = int(message.split(":")[0].removeprefix("step "))
    assert load(last)["step"] < step  # nothing was saved after the loss went wrong


@pytest.mark.usefixtures("pictures")
def test_run_folder_is_complete(tiny: Path) -> None:
    result = start(str(tiny), ["callbacks=[{name: augmented_views}]"], display=Silent())
    names = {path.relative_to(result.run_dir).as_posix() for path in result.run_dir.rglob("*.*")}
    assert {
        "recipe.resolved.yaml", "environment.json", "metrics.jsonl", "encoder.safetensors",
        "report.md", "results.json", "figures/curves.png", "figures/accuracies.png",
        "figures/augmented_views.png", "checkpoints/step-00000018.pt",
    } <= names  # fmt: skip
    environment = json.loads((result.run_dir / "environment.json").read_text())
    assert environment["facts"]["total_steps"] == 18
    assert environment["data"]["train"]
    assert torch.__version__.startswith(environment["packages"]["torch"])
    report = (result.run_dir / "report.md").read_text()
    assert "| knn top1 |" in report
    assert "(figures/curves.png)" in report
    results = json.loads((result.run_dir / "results.json").read_text())
    (knn,) = [row for row in results["comparison"] if row["protocol"] == "knn"][:1]
    assert set(knn["values"]) == {"pixels", "untrained", "trained"}
    assert result.metrics["eval/knn/top1"] == knn["values"]["trained"]["value"]
    assert result.metrics["eval/knn/top1_untrained"] == knn["values"]["untrained"]["value"]


@pytest.mark.slow  # 2 seconds
def test_metric_names(tiny: Path) -> None:
    metrics = start(
        str(tiny), ["evaluate=[{name: knn, k: 5}, {name: collapse}]"], display=Silent()
    ).metrics
    assert {
        "train/loss", "train/lr", "eval/knn/top1", "eval/online_probe/top1",
        "collapse/std", "collapse/rankme", "collapse/alignment", "collapse/uniformity",
        "perf/images_per_second", "perf/data_wait_fraction", "perf/peak_memory_mb",
    } <= metrics.keys()  # fmt: skip
    assert 0.0 <= metrics["perf/data_wait_fraction"] <= 1.0


@pytest.mark.slow  # 2 seconds
def test_schedule_reaches_the_log(tiny: Path) -> None:
    run_dir = start(str(tiny), ["train.log_every_steps=1"], display=Silent()).run_dir
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates = {
        line["step"]: line["metrics"]["train/lr"] for line in lines if "train/lr" in line["metrics"]
    }
    assert rates[1] == 0.0  # warm-up of 3 steps, from 0
    assert rates[4] == pytest.approx(1e-3)
    expected = 1e-3 * 0.5 * (1 + math.cos(math.pi * (17 - 3) / (18 - 3)))
    assert rates[18] == pytest.approx(expected)


def test_unlabelled_images_train(tiny: Path, tmp_path: Path) -> None:
    from PIL import Image

    for index in range(20):
        pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    result = start(
        str(tiny),
        [
            f"data={{name: image_folder, train: {tmp_path}}}",
            "evaluate=[{name: knn, k: 5}, {name: collapse}]",
        ],
        display=Silent(),
    )
    assert result.results is not None
    assert result.results.trained.skipped["knn"] == "no labels"
    assert "collapse/std" in result.metrics
    assert "knn: skipped: no labels" in (result.run_dir / "report.md").read_text()


def test_greyscale_images_train(tiny: Path) -> None:
    changes = [
        "data.channels=1", "augmentation.saturation=0", "augmentation.hue=0",
        "augmentation.grayscale_probability=0", "backbone.normalize=none", "train.max_steps=2",
    ]  # fmt: skip
    assert start(str(tiny), changes, display=Silent()).status == "finished"
    (problem,) = validate(str(tiny), changes[:1] + changes[3:]).problems[:1]
    assert "augmentation.saturation" in problem


def test_losses_are_computed_in_float32(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def forward(self: NTXent, inputs: LossInput) -> Tensor:
        seen.append((inputs.views[0].dtype, torch.is_autocast_enabled("cpu")))
        return nt_xent(inputs.views[0], inputs.views[1], 0.5)

    monkeypatch.setattr(NTXent, "forward", forward)
    metrics = start(
        str(tiny),
        ["train.precision=bf16", "train.max_steps=2", "augmentation.size=64"],
        display=Silent(),
    ).metrics
    assert math.isfinite(metrics["train/loss"])
    assert len(seen) >= 2  # a loss is also tried before a run
    assert set(seen) == {(torch.float32, False)}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda z: z.sum(dim=1), r"method\.loss: NTXent.forward gave a tensor of shape \(16,\)"),
        (lambda z: (z.sum(), 1), r"method\.loss: NTXent.forward gave a tuple"),
        (
            lambda z: z.detach().sum(),
            r"NTXent.forward gave a scalar without gradient, of embeddings that have one",
        ),
    ],
)
def test_a_loss_that_is_no_loss(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    result: Callable[[Tensor], object],
    expected: str,
) -> None:
    monkeypatch.setattr(NTXent, "forward", lambda self, inputs: result(inputs.views[0]))
    with pytest.raises(PluginError, match=expected):
        start(str(tiny), [], display=Silent())


def test_an_encoder_that_misstates_its_width(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.builtin.timm_backbone.feature_width", lambda model: 99)
    with pytest.raises(PluginError, match=r"'timm' of sslkit .* its num_features 99"):
        start(str(tiny), [], display=Silent())
    assert not list((tiny.parent / "runs").iterdir())  # nothing is left of a run that never began


def test_an_unexpected_failure_leaves_its_traceback(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: NTXent, inputs: LossInput) -> Tensor:
        raise ZeroDivisionError("in a plugin")

    monkeypatch.setattr(NTXent, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        start(str(tiny), [], display=Silent())
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert "ZeroDivisionError: in a plugin" in (run_dir / "traceback.txt").read_text()


def test_compile_true_without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.experiment.resolve.shutil.which", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"train\.compile: true, but no C\+\+ compiler"):
        resolve_compile(True)
    assert resolve_compile("if_available") is False


def test_full_disk_is_found_before_the_first_step(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("sslkit.experiment.trials.shutil.disk_usage", lambda path: usage)
    with pytest.raises(RecipeError, match=r"runs_dir: the checkpoints need up to .* 0\.0 GB free"):
        start(str(tiny), [], display=Silent())


def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"train\.device: 'cuda' is not available .*cpu"):
        resolve_device("cuda")


def test_dry_run_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    plan = make_plan(str(tiny), [], Silent()).to_json()
    assert not (tmp_path / "runs").exists()
    assert plan["total_steps"] == 18
    assert plan["parameters"]["encoder"] < plan["parameters"]["trainable"]
    assert math.isfinite(plan["first_loss"])
    assert plan["lr_curve"][0] == {"step": 0, "lr": 0.0}
    assert json.loads(json.dumps(plan)) == plan


# --- The encoder ---------------------------------------------------------------------------------


def test_encoder_of_a_run_three_ways(tiny: Path) -> None:
    import timm

    run_dir = start(str(tiny), [], display=Silent()).run_dir
    images = torch.rand(4, 3, 16, 16)
    from_folder = load_encoder(run_dir)
    assert not from_folder.training
    features = from_folder(images)
    assert features.shape == (4, from_folder.num_features)
    assert from_folder.preprocess.size == 16
    checkpoint = sorted((run_dir / "checkpoints").iterdir())[-1]
    assert torch.equal(load_encoder(checkpoint)(images), features)

    from safetensors.torch import load_file

    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict(load_file(run_dir / "encoder.safetensors"))
    mean = torch.tensor(from_folder.preprocess.mean).view(3, 1, 1)
    std = torch.tensor(from_folder.preprocess.std).view(3, 1, 1)
    torch.testing.assert_close(plain((images - mean) / std), features)


@pytest.mark.parametrize("name", ["missing", "empty.pt", "text.safetensors"])
def test_encoder_that_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name != "missing":
        path.write_text("nothing" if name.startswith("text") else "")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_encoder(path)


@pytest.mark.slow  # 2 seconds
def test_start_from_an_earlier_run(tiny: Path) -> None:
    first = start(str(tiny), ["train.max_steps=2"], display=Silent()).run_dir
    second = start(
        str(tiny), [f"backbone.weights={first}", "train.max_steps=1"], display=Silent()
    ).run_dir
    # One step of warm-up has learning rate 0: the weights are those of the first run.
    before, after = load_encoder(first), load_encoder(second)
    name, weight = next(iter(after.named_parameters()))
    assert torch.equal(weight, before.get_parameter(name))


def test_evaluate_run_repeats_the_result(tiny: Path) -> None:
    result = start(str(tiny), [], display=Silent())
    again = evaluate_run(result.run_dir, ["knn"], [], Silent()).results
    assert again.trained.metrics["eval/knn/top1"] == result.metrics["eval/knn/top1"]
    assert again.baselines.metrics["eval/knn/top1_pixels"] == result.metrics["eval/knn/top1_pixels"]
    other = evaluate_run(result.run_dir, ["knn"], ["evaluate.0.k=1"], Silent()).results
    assert other.trained.metrics.keys() == again.trained.metrics.keys()


# --- Parts ---------------------------------------------------------------------------------------


def test_checkpoints_keep_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (5, 10, 1234567890):
        checkpoints.save(step, {"value": torch.tensor(step)})
    assert [path.name for path in checkpoints.paths()] == [
        "step-00000010.pt", "step-1234567890.pt",
    ]  # fmt: skip
    state, damaged = checkpoints.load_newest()
    assert state is not None
    assert state["step"] == 1234567890
    assert damaged == []


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("code ran",))

    path = tmp_path / "step-00000001.pt"
    torch.save({"format": 1, "step": 1, "evil": Evil()}, path)
    with pytest.raises(CheckpointError, match="not readable as a checkpoint: holds Python objects"):
        load(path)


def test_all_checkpoints_damaged(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="step-00000001"):
        Checkpoints(tmp_path, keep=1).load_newest()


def test_meter_names_the_first_bad_step() -> None:
    meter = LossMeter(OneProcess())
    for loss, norm in ((1.0, 1.0), (2.0, math.nan), (math.nan, 1.0)):
        meter.add(torch.tensor(loss), torch.tensor(norm), 8)
    with pytest.raises(NotFiniteError) as caught:
        meter.check(step=10)
    assert caught.value.step == 9
    assert caught.value.symptom == "the norm of the gradient is nan"


def test_a_step_that_overflows_in_float16_is_no_failure() -> None:
    meter = LossMeter(OneProcess())
    meter.add(torch.tensor(1.0), torch.tensor(math.inf), 8)
    meter.check(step=1, overflows=lambda: True)
    meter.add(torch.tensor(math.nan), torch.tensor(math.inf), 8)
    with pytest.raises(NotFiniteError):
        meter.check(step=2, overflows=lambda: True)


def test_meter_survives_a_round_trip() -> None:
    meter, other = LossMeter(OneProcess()), LossMeter(OneProcess())
    for value in (1.0, 2.0):
        meter.add(torch.tensor(value), torch.tensor(1.0), 8)
    other.load_state_dict(meter.state_dict(), torch.device("cpu"))
    other.add(torch.tensor(6.0), torch.tensor(1.0), 8)
    assert other.flush()[0] == 3.0


def test_online_probe_learns_and_leaves_the_encoder_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (256,), generator=generator)
    centres = 3 * torch.randn(3, 8, generator=generator)
    features = centres[labels] + torch.randn(256, 8, generator=generator)
    features = features[:, None].repeat(1, 2, 1).requires_grad_()
    probe = OnlineProbe(8, 3, lr=0.1, weight_decay=0.0, seed=0, device=torch.device("cpu"))
    for _ in range(100):
        metrics = probe.step(features, labels, lr_factor=1.0)
    assert features.grad is None
    assert metrics["online_probe/top1"] > 0.9
    assert probe.correct(features[:, 0], labels).double().mean() > 0.9


def test_second_interrupt_is_immediate() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.3), ("linear", 4.8), ("sqrt", 1.2)])
def test_lr_scaling(scaling: str, expected: float) -> None:
    config = OptimizerConfig.model_validate({"lr": 0.3, "lr_scaling": scaling})
    assert scaled_lr(config, 4096) == pytest.approx(expected)


def test_tied_parameters_are_refused() -> None:
    from sslkit.api import ParamGroup
    from sslkit.engine.optimization import _check_groups

    layer = nn.Linear(2, 2)
    group = ParamGroup(list(layer.named_parameters()))
    with pytest.raises(PluginError, match="names the parameter 'weight' twice"):
        _check_groups(layer, [group, group])  # type: ignore[arg-type]
