"""sslkit as a library: what a program gets without a recipe is what a run has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import sslkit
from sslkit.api import FeatureBank, Preprocess
from sslkit.errors import DataError, PluginError, RecipeError
from sslkit.nn.functional import nt_xent
from sslkit.randomness import seeded
from sslkit.recipe import load_recipe
from tests.conftest import TINY

SYNTHETIC = {"num_train": 96, "num_test": 48, "size": 16}
KNN = {"k": 5, "temperature": 0.1}


def augmentation(**fields):
    block = {"size": 16, "jitter_strength": 0.5, "blur": False, **fields}
    return sslkit.component("augmentation", "simclr", **block).build()


def digits():
    train, test = sslkit.open_data("digits", size=8)
    assert test is not None
    return train, test


# --- Components -----------------------------------------------------------------------------------


def test_a_component_is_that_of_a_recipe(tiny: Path) -> None:
    recipe = load_recipe(tiny)
    given = sslkit.component("augmentation", "simclr", size=16, jitter_strength=0.5, blur=False)
    assert given == recipe.augmentation
    head = sslkit.component("head", "mlp", hidden_dim=16, out_dim=8).build(in_dim=32)
    assert head(torch.rand(4, 32)).shape == (4, 8)


@pytest.mark.parametrize(
    ("kind", "name", "fields", "error", "said"),
    [
        ("augmentation", "simclr", {"size": 8, "flipp": 0}, RecipeError, "did you mean 'flip'?"),
        ("augmentation", "simclr", {}, RecipeError, "augmentation 'simclr'.size: is required"),
        ("evaluator", "knn", {"k": -1}, RecipeError, "evaluator 'knn'.k: Input should be"),
        ("method", "simclr", {"head": {"name": "mlp", "x": 1}}, RecipeError, "head.x: unknown"),
        ("loss", "ntxent", {}, PluginError, "did you mean 'nt_xent'?"),
        ("los", "nt_xent", {}, RecipeError, "did you mean 'loss'?"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(kind, name, fields, error, said) -> None:
    with pytest.raises(error) as caught:
        sslkit.component(kind, name, **fields)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Views ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a plain loop repeats: no weight decay, no schedule, no drop path."""
    folder = tmp_path_factory.mktemp("library")
    recipe = folder / "plain.yaml"
    recipe.write_text(TINY.replace(", drop_path_rate: 0.2", "") + f"runs_dir: {folder / 'runs'}\n")
    overrides = [
        "optimizer={name: sgd, lr: 0.05, momentum: 0.0, weight_decay: 0.0}",
        "schedule={name: constant}",
        "train.log_every_steps=1",
        "train.epochs=2",
        "callbacks=[]",
    ]
    return sslkit.run(recipe, overrides).run_dir


def engine_batches(run: Path):
    from sslkit.data.cached_split import CachedSplit
    from sslkit.data.splits import open_splits
    from tests.data.loaders import train_loader

    recipe = load_recipe(run / "recipe.resolved.yaml")
    reader = open_splits(recipe.data).train
    store = CachedSplit(reader, max_corrupt_fraction=0.0, seed=recipe.seed, num_threads=1)
    return train_loader(store, recipe.augmentation.build(), recipe.train.batch_size, seed=0)


def assert_same_batch(one, other) -> None:
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.labels, other.labels)
    for a, b in zip(one.views, other.views, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.random.uniform("x", 3), other.random.uniform("x", 3))


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("num_threads", [0, 3])
def test_batches_are_those_of_a_run_to_the_bit(run: Path, num_threads: int) -> None:
    train, _ = sslkit.open_data("synthetic", **SYNTHETIC)
    batches = sslkit.load_batches(train, augmentation(), batch_size=16, num_threads=num_threads)
    assert batches.steps_per_epoch == 6
    for epoch in (0, 2):
        of_run = engine_batches(run).epoch(epoch)
        for one, other in zip(batches.epoch(epoch), of_run, strict=True):
            assert_same_batch(one, other)


def test_the_views_of_a_batch_are_those_of_a_run_to_the_bit(run: Path) -> None:
    train, _ = sslkit.open_data("synthetic", **SYNTHETIC)
    pixels = torch.stack([torch.from_numpy(train.read(i)).permute(2, 0, 1) for i in range(96)])
    for batch in engine_batches(run).epoch(1):
        made = augmentation()(pixels[batch.indices], batch.indices, epoch=1, labels=batch.labels)
        assert_same_batch(made, batch)


def test_views_follow_the_image_and_not_its_place_in_the_batch() -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    indices = torch.tensor([4, 0, 9, 2, 7, 5])
    whole = augmentation()(images, indices, epoch=3, seed=1).views[0]
    part = augmentation()(images[[2, 0]], indices[[2, 0]], epoch=3, seed=1).views[0]
    assert torch.equal(part, whole[[2, 0]])
    for other in ({"epoch": 4, "seed": 1}, {"epoch": 3, "seed": 2}):
        assert not torch.equal(augmentation()(images, indices, **other).views[0], whole)


def test_no_view_changes_a_generator_or_the_pixels() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    augmentation()(images, torch.arange(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("samples", "indices", "said"),
    [
        (torch.rand(4, 3, 16, 16), torch.arange(4), "uint8"),
        (torch.zeros(4, 3, 16, dtype=torch.uint8), torch.arange(4), "(B, C, H, W)"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(3), "indices"),
        (torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.arange(4), "augmentation.saturation"),
    ],
)
def test_samples_that_an_augmentation_does_not_take_are_refused(samples, indices, said) -> None:
    with pytest.raises(
        (DataError, RecipeError), match=said.replace("(", r"\(").replace(")", r"\)")
    ):
        augmentation()(samples, indices)


def test_channels_that_do_not_fit_are_refused_before_the_first_batch() -> None:
    with pytest.raises(RecipeError, match=r"augmentation\.saturation"):
        sslkit.load_batches(digits()[0], augmentation(), batch_size=16)


# --- Images that are at hand ----------------------------------------------------------------------


class Photographs(Dataset):
    """Of several sizes, as torchvision's data sets give them."""

    classes = ("a", "b")

    def __init__(self, count: int = 20, as_tensor: bool = False, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.images = [
            random.integers(0, 256, (20 + i % 5, 30, 3), dtype=np.uint8) for i in range(count)
        ]
        self.targets = [i % 2 for i in range(count)]
        self.as_tensor = as_tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = self.images[index]
        given = torch.from_numpy(image.transpose(2, 0, 1)) if self.as_tensor else None
        return (Image.fromarray(image) if given is None else given), self.targets[index]


def same_in_every_form(pixels: np.ndarray):
    """(N, H, W, 3) in every form that is taken."""
    tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    yield pixels
    yield tensor
    yield [Image.fromarray(image) for image in pixels]
    yield list(tensor)
    yield [(image, 0) for image in pixels]


def test_every_form_of_images_reads_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 14, 3), dtype=np.uint8)
    readers = [sslkit.read_images(form, labels=range(5)) for form in same_in_every_form(pixels)]
    for reader in readers:
        assert len(reader) == 5
        assert reader.channels == 3
        assert reader.labels.tolist() == [0, 1, 2, 3, 4]
        assert all(np.array_equal(reader.read(i), pixels[i]) for i in range(5))
    assert len({reader.fingerprint() for reader in readers}) == 1
    assert sslkit.read_images(pixels[:, ::-1], labels=range(5)).fingerprint() != (
        readers[0].fingerprint()
    )


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_grey_images_need_no_axis_of_channels(form) -> None:
    pixels = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
    reader = sslkit.read_images(form(pixels))
    assert (reader.channels, reader.image_size) == (1, (6, 5))
    assert reader.samples.shape == (2, 1, 6, 5)
    assert np.array_equal(reader.read(1)[:, :, 0], pixels[1])


def test_a_data_set_of_torch_has_its_labels_and_classes() -> None:
    reader = sslkit.read_images(Photographs())
    assert reader.labels.tolist() == [0, 1] * 10
    assert reader.class_names == ("a", "b")
    part = sslkit.read_images(Subset(Photographs(), [3, 5, 6]))
    assert part.labels.tolist() == [1, 1, 0]
    assert part.class_names == ("a", "b")
    assert sslkit.read_images(Photographs().images).labels is None


@pytest.mark.parametrize("as_tensor", [False, True])
def test_views_of_a_data_set_are_those_of_the_files(tmp_path: Path, as_tensor: bool) -> None:
    """Images of several sizes are cropped as an image folder's are."""
    photographs = Photographs()
    for index, image in enumerate(photographs.images):
        folder = tmp_path / photographs.classes[index % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:02}.png")
    files, _ = sslkit.open_data("image_folder", train=tmp_path)
    order = [int(files.describe(i)[-6:-4]) for i in range(len(files))]
    given = sslkit.read_images(Subset(Photographs(as_tensor=as_tensor), order))
    pair = [
        sslkit.load_batches(reader, augmentation(), batch_size=10, num_threads=2).epoch(0)
        for reader in (files, given)
    ]
    for one, other in zip(*pair, strict=True):
        assert_same_batch(one, other)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.rand(4, 3, 8, 8), None, "leave out ToTensor and Normalize"),
        ([], None, "there are none"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0, 1], r"valid are 4 whole numbers"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0.5, 1.0, 2.0, 3.0], "whole numbers"),
        (np.zeros((4,), np.uint8), None, "valid are PIL images"),
    ],
)
def test_what_are_no_images_or_labels_is_refused(images, labels, said) -> None:
    with pytest.raises(DataError, match=said):
        sslkit.read_images(images, labels)


# --- A plain loop ---------------------------------------------------------------------------------


def logged_losses(run: Path) -> list[float]:
    points = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [each["metrics"]["train/loss"] for each in points if "train/loss" in each["metrics"]]


def plain_loop(epochs: int = 2) -> tuple[nn.Module, list[float]]:
    train, _ = sslkit.open_data("synthetic", **SYNTHETIC)
    with seeded(0, "initialisation"):
        encoder = sslkit.component("backbone", "timm", model="test_resnet").build(
            channels=3, image_size=16
        )
        head = sslkit.component("head", "mlp", hidden_dim=16, out_dim=8).build(
            in_dim=encoder.num_features
        )
    network = nn.Sequential(encoder, head).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    batches = sslkit.load_batches(train, augmentation(), batch_size=16)
    losses = []
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            views = torch.cat([view.to(memory_format=torch.channels_last) for view in batch.views])
            loss = nt_xent(*network(views).chunk(2), temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return encoder, losses


def test_a_plain_loop_trains_and_scores_as_a_run_does(run: Path) -> None:
    """The same losses and the same weights, to the bit, and the same features."""
    encoder, losses = plain_loop()
    assert len(losses) == 12
    assert losses == logged_losses(run)
    trained = sslkit.load_encoder(run)
    for name, value in trained.named_parameters():
        assert torch.equal(dict(encoder.named_parameters())[name], value)

    train, test = sslkit.open_data("synthetic", **SYNTHETIC)
    assert test is not None
    own = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    bank = sslkit.take_features(encoder, train, test, calibrated=True)
    assert all(torch.equal(own[name], buffer) for name, buffer in encoder.named_buffers())
    assert encoder.training
    of_run = sslkit.take_features(trained, train, test)
    torch.testing.assert_close(bank.train, of_run.train, rtol=1e-4, atol=1e-5)


def test_features_score_as_the_run_reports_it(run: Path) -> None:
    train, test = sslkit.open_data("synthetic", **SYNTHETIC)
    assert test is not None
    bank = sslkit.take_features(sslkit.load_encoder(run), train, test)
    found = sslkit.evaluate_features(bank, sslkit.component("evaluator", "knn", k=5))
    results = json.loads((run / "results.json").read_text())
    stored = results["trained"]["metrics"]
    assert {f"eval/knn/{name}": value for name, value in found["knn"].metrics.items()} == {
        name: value for name, value in stored.items() if name.startswith("eval/knn/")
    }


# --- Evaluators on features -----------------------------------------------------------------------


def clusters(count: int = 120, classes: int = 4, spread: float = 0.8):
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    rows = np.eye(classes)[labels] + random.normal(scale=spread, size=(count, classes))
    return rows, labels


def test_arrays_of_anybody_score_as_scikit_learn_scores_them() -> None:
    """k = 1, where votes have no weights: cosine distance."""
    rows, labels = clusters()
    bank = FeatureBank(rows[:90], rows[90:], labels[:90], labels[90:])  # type: ignore[arg-type]
    found = sslkit.evaluate_features(
        bank, sslkit.component("evaluator", "knn", k=1), sslkit.component("evaluator", "knn", k=30)
    )
    reference = KNeighborsClassifier(1, metric="cosine").fit(rows[:90], labels[:90])
    assert found.keys() == {"knn", "knn_2"}
    assert found["knn"].metrics["top1"] == pytest.approx(reference.score(rows[90:], labels[90:]))
    assert found["knn_2"].metrics["top1"] > found["knn"].metrics["top1"]


def test_rows_without_a_label_are_left_out() -> None:
    rows, labels = clusters()
    part = np.where(np.arange(120) % 3 == 0, -1, labels)
    knn = sslkit.component("evaluator", "knn", k=5)
    some = FeatureBank(rows[:90], rows[90:], part[:90], labels[90:])  # type: ignore[arg-type]
    kept = part[:90] >= 0
    fewer = FeatureBank(rows[:90][kept], rows[90:], labels[:90][kept], labels[90:])  # type: ignore[arg-type]
    assert (
        sslkit.evaluate_features(some, knn)["knn"].metrics
        == sslkit.evaluate_features(fewer, knn)["knn"].metrics
    )


def test_one_class_alone_is_skipped_with_the_reason() -> None:
    rows, labels = clusters()
    bank = FeatureBank(rows[:90], rows[90:], 0 * labels[:90], labels[90:])  # type: ignore[arg-type]
    found = sslkit.evaluate_features(bank, sslkit.component("evaluator", "knn", k=5))
    assert "one class" in str(found["knn"].skipped)
    assert not found["knn"].metrics


def test_evaluators_leave_generators_alone_and_repeat() -> None:
    rows, labels = clusters()
    bank = FeatureBank(rows[:90], rows[90:], labels[:90], labels[90:])  # type: ignore[arg-type]
    probe = sslkit.component("evaluator", "few_label", labels_per_class=[1, 5], draws=3)
    state = torch.get_rng_state()
    one = sslkit.evaluate_features(bank, probe, seed=3)["few_label"].metrics
    assert torch.equal(torch.get_rng_state(), state)
    assert one == sslkit.evaluate_features(bank, probe, seed=3)["few_label"].metrics
    assert one != sslkit.evaluate_features(bank, probe, seed=4)["few_label"].metrics


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [("finetune", {}, "works on images"), ("knn", {"layer": 1}, "projection head")],
)
def test_an_evaluator_that_needs_more_than_features_is_refused(name, fields, said) -> None:
    rows, labels = clusters()
    bank = FeatureBank(rows[:90], rows[90:], labels[:90], labels[90:])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=said):
        sslkit.evaluate_features(bank, sslkit.component("evaluator", name, **fields))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda r, y: FeatureBank(r[:90, 0], r[90:], y[:90], y[90:]), r"train is \(90,\)"),
        (lambda r, y: FeatureBank(r[:90], r[90:], y[:80], y[90:]), r"labels .* \(80,\)"),
        (lambda r, y: FeatureBank(r[:90], r[90:], y[:90] + 0.5, y[90:]), "float64"),
        (lambda r, y: FeatureBank(r[:90], r[90:, :3], y[:90], y[90:]), "from one encoder"),
        (lambda r, y: FeatureBank(r[:90] * np.nan, r[90:], y[:90], y[90:]), "not finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(broken, said) -> None:
    with pytest.raises(DataError, match=said):
        sslkit.evaluate_features(broken(*clusters()), sslkit.component("evaluator", "knn", k=5))


def test_test_images_that_are_training_images_are_refused() -> None:
    train, _ = digits()
    with pytest.raises(RecipeError, match="1,438 of 1,438 test images are also training images"):
        sslkit.take_features(nn.Flatten(), train, train)


def test_some_test_images_among_the_training_images_are_said() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    train = sslkit.read_images(pixels[:30], np.arange(30) % 2)
    test = sslkit.read_images(pixels[25:], np.arange(15) % 2)
    with pytest.warns(UserWarning, match="5 of 15 test images are also training images"):
        sslkit.take_features(nn.Flatten(), train, test)


def test_files_that_are_left_out_are_said(tmp_path: Path) -> None:
    for index, image in enumerate(Photographs().images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "x.heic").write_bytes(b"x")
    with pytest.warns(UserWarning, match="heic"):
        sslkit.open_data("image_folder", train=tmp_path)


def test_classes_in_another_order_are_refused() -> None:
    """Labels are positions: the same number would mean another class."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    train = sslkit.read_images(pixels[:4], [0, 1, 0, 1], ["cat", "dog"])
    test = sslkit.read_images(pixels[4:], [0, 1], ["dog", "cat"])
    with pytest.raises(DataError, match="same class_names"):
        sslkit.take_features(nn.Flatten(), train, test)


def test_any_encoder_gives_features_in_evaluation_mode() -> None:
    """What it gives by hand: pixels in [0, 1], all images in their order, dropout off."""
    train, test = digits()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5)).train()
    bank = sslkit.take_features(encoder, train, test)
    with torch.no_grad():
        by_hand = encoder.eval()(torch.from_numpy(test.samples) / 255.0)
    torch.testing.assert_close(bank.test, by_hand)
    assert bank.train_labels.tolist() == train.labels.tolist()
    assert bank.num_classes == 10


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (nn.Identity(), r"\(1, 8, 8\) for an image"),
        (nn.Flatten(0), "one row of numbers"),
        (nn.LSTM(8, 4), "tuple"),
    ],
)
def test_an_encoder_that_gives_no_rows_is_refused(encoder: nn.Module, said: str) -> None:
    squeezed = nn.Sequential(nn.Flatten(1, 2), encoder) if said == "tuple" else encoder
    with pytest.raises(DataError, match=said):
        sslkit.take_features(squeezed, *digits())


def test_images_of_several_sizes_need_a_preparation_for_a_network_of_ones_own() -> None:
    train = sslkit.read_images(Photographs())
    test = sslkit.read_images(Subset(Photographs(seed=1), range(5)))
    with pytest.raises(DataError, match="preprocess=sslkit"):
        sslkit.take_features(nn.Flatten(), train, test)
    bank = sslkit.take_features(
        nn.Flatten(), train, test, preprocess=Preprocess(size=16, resize=16), num_threads=2
    )
    assert bank.train.shape == (20, 3 * 16 * 16)
    assert bank.test.shape == (5, 3 * 16 * 16)
    prepared = torch.nn.functional.interpolate(
        torch.tensor(train.read(0)).permute(2, 0, 1)[None] / 255.0,
        (16, 24),
        mode="bilinear",
        antialias=True,
    )[0, :, :, 4:20]  # 20 x 30 pixels: the shorter side to 16, then the centre
    torch.testing.assert_close(bank.train[0], prepared.flatten(), rtol=0.0, atol=1.01 / 255)


# --- Several processes ----------------------------------------------------------------------------

LIGHTNING = """\
import json, sys
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import sslkit
from sslkit.nn.functional import nt_xent
from sslkit.parallel.collectives import all_ranks

class SimCLR(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.augment = sslkit.component("augmentation", "simclr", size=16, blur=False).build()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 8))

    def training_step(self, batch, step):
        images, indices = batch
        views = self.augment(images, indices, epoch=self.current_epoch).views
        first, second = (self.network(view.double()) for view in views)
        return nt_xent(first, second, 0.2, group=all_ranks())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    torch.set_num_threads(1)
    pl.seed_everything(0)
    module = SimCLR().double()
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    processes = int(sys.argv[1])
    loader = DataLoader(TensorDataset(images, torch.arange(16)), batch_size=16 // processes)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", devices=processes, logger=False, precision="64-true",
        strategy="ddp" if processes > 1 else "auto", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        print(json.dumps([float(weights.square().sum()), float(weights[:100].sum())]))
"""


@pytest.mark.slow  # starts Lightning on two processes, some 20 s where the machine is idle
@pytest.mark.timeout(400)
def test_lightnings_ddp_is_one_process(tmp_path: Path) -> None:
    """A batch on two processes, whose images are each other's negatives, three steps."""
    pytest.importorskip("pytorch_lightning", reason="the parity group is not installed")
    script = tmp_path / "module.py"
    script.write_text(LIGHTNING)
    found = []
    for processes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, str(script), processes],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (line,) = [each for each in done.stdout.splitlines() if each.startswith("[")]
        found.append(torch.tensor(json.loads(line), dtype=torch.float64))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


DDP = """\
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import sslkit
from sslkit.nn.functional import nt_xent
from sslkit.parallel.finding import find_world

torch.set_num_threads(1)
world = find_world()
torch.manual_seed(0)
train, _ = sslkit.open_data("synthetic", num_train=96, num_test=48, size=16)
augment = sslkit.component("augmentation", "simclr", size=16, blur=False).build()
batches = sslkit.load_batches(train, augment, batch_size=16, world=world)
network = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 8)).double()
if world.group is not None:
    network = DistributedDataParallel(network)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
for epoch in range(2):
    for batch in batches.epoch(epoch):
        first, second = network(torch.cat(batch.views).double()).chunk(2)
        if GATHER == "group":
            loss = nt_xent(first, second, 0.2, group=world.group)
        else:
            loss = nt_xent(world.gather(first), world.gather(second), 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = world.mean(loss.detach())
        if world.is_first:
            print(f"{float(whole):.12f}")
if world.is_first:
    print(f"{float(sum(p.square().sum() for p in network.parameters())):.12f}")
"""


@pytest.mark.slow  # 4 seconds
def test_processes_that_have_met_already_are_told_what_to_do(tmp_path: Path) -> None:
    """As under Lightning, or after `init_process_group`."""
    code = (
        "import os, torch.distributed as dist\n"
        f"meet = 'file://{tmp_path}/meet'\n"
        "dist.init_process_group('gloo', init_method=meet, rank=0, world_size=1)\n"
        "os.environ.update(RANK='0', WORLD_SIZE='2', LOCAL_RANK='0', LOCAL_WORLD_SIZE='2',\n"
        "                  MASTER_ADDR='127.0.0.1', MASTER_PORT='29999')\n"
        "from sslkit.parallel.finding import find_world\n"
        "from sslkit.errors import RankError\n"
        "try:\n    find_world()\nexcept RankError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "initialised already" in done.stdout, done.stderr
    assert "all_ranks()" in done.stdout


@pytest.mark.slow  # starts three processes that import torch, some 10 s
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["group", "gather"])
def test_a_plain_loop_in_ddp_is_that_of_one_process(tmp_path: Path, how: str) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(f"GATHER = {how!r}\n{DDP}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def numbers(command: list[str]) -> Tensor:
        done = subprocess.run(
            [*command, str(script)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return torch.tensor([float(line) for line in done.stdout.split()], dtype=torch.float64)

    one, two = numbers([sys.executable]), numbers(launch)
    assert len(one) == 13
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)
