"""digits, synthetic and torchvision."""

import struct

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sslkit.builtin.sources import torchvision as torchvision_source
from sslkit.builtin.sources.digits import Digits
from sslkit.builtin.sources.paths import sample_positions
from sslkit.builtin.sources.scenes import Scenes
from sslkit.builtin.sources.synthetic import FACTORS, Synthetic
from sslkit.builtin.sources.torchvision import Torchvision
from sslkit.data.cached_split import CachedSplit
from sslkit.errors import DataError, RecipeError


def test_digits_split_is_stratified_disjoint_and_fixed():
    from sklearn.datasets import load_digits

    data = Digits(Digits.Config(size=8))
    train, test = data.open("train"), data.open("test")
    assert len(train) + len(test) == 1797
    counts = np.bincount(load_digits().target)
    assert np.bincount(test.labels).tolist() == [round(0.2 * count) for count in counts]
    originals = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    together = np.concatenate([train.images, test.images])[..., 0]
    assert sorted(map(bytes, together)) == sorted(map(bytes, originals))
    assert train.fingerprint() == Digits(Digits.Config(size=8)).open("train").fingerprint()
    # Pinned: published figures rest on this split.
    assert test.fingerprint() == "cfad8ef09d94144e"


def test_digits_are_enlarged_once():
    reader = Digits(Digits.Config()).open("train")
    assert reader.image_size == (32, 32)
    assert reader.channels == 1
    assert reader.read(0).shape == (32, 32, 1)
    assert int(reader.images.max()) == 255
    store = CachedSplit(reader, max_corrupt_fraction=0.0, seed=0, num_threads=0)
    assert store.resident.shape == (1438, 1, 32, 32)
    assert store.resident.data_ptr() == reader.samples.ctypes.data  # no second copy
    assert store.class_names == tuple("0123456789")


def synthetic(split="train", **fields):
    return Synthetic(Synthetic.Config(num_train=400, num_test=50, **fields)).open(split)


def test_a_scene_depends_on_its_number_alone():
    first = synthetic()
    more = Synthetic(Synthetic.Config(num_train=900)).open("train")
    for index in (399, 0, 7):
        assert np.array_equal(first.read(index), more.read(index))
    assert not np.array_equal(first.read(0), synthetic("test").read(0))
    assert not np.array_equal(first.read(0), synthetic(data_seed=1).read(0))
    assert first.fingerprint() == synthetic().fingerprint()
    assert first.fingerprint() != synthetic(data_seed=1).fingerprint()
    assert synthetic("test", label="size").class_names == ("small", "medium", "large")
    assert Synthetic(Synthetic.Config(num_test=0)).open("test") is None


@pytest.mark.parametrize("label", list(FACTORS))
def test_each_factor_can_be_the_label(label):
    reader = synthetic(label=label)
    assert reader.class_names == FACTORS[label]
    counts = np.bincount(reader.labels, minlength=len(FACTORS[label]))
    expected = 400 / len(FACTORS[label])
    assert (abs(counts - expected) < 4 * np.sqrt(expected)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_scenes_are_images(channels):
    reader = synthetic(channels=channels, size=48)
    image = reader.read(3)
    assert image.shape == (48, 48, channels)
    assert image.dtype == np.uint8
    assert image.std() > 10
    assert ", " in reader.describe(3)


def test_the_mean_colour_says_nothing_about_the_shape():
    from sklearn.linear_model import LogisticRegression

    train, test = (
        Synthetic(Synthetic.Config(num_train=1200, num_test=400)).open(split)
        for split in ("train", "test")
    )
    means = [
        np.array([reader.read(i).mean((0, 1)) / 255 for i in range(len(reader))])
        for reader in (train, test)
    ]
    guess = LogisticRegression(max_iter=500).fit(means[0], train.labels)
    assert guess.score(means[1], test.labels) < 2.0 / 8


def write_mnist(root, count=7):
    """MNIST's own file format (idx), small."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images = {}
    for prefix in ("train", "t10k"):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        images[prefix] = pixels
    return images


def test_torchvision_grey_images(tmp_path):
    images = write_mnist(tmp_path)
    data = Torchvision(Torchvision.Config(dataset="mnist", root=tmp_path))
    train, test = data.open("train"), data.open("test")
    assert train.channels == 1
    assert train.image_size == (28, 28)
    assert np.array_equal(train.read(4)[..., 0], images["train"][4])
    assert np.array_equal(test.read(0)[..., 0], images["t10k"][0])
    assert train.labels.tolist() == list(range(7))
    assert len(train.class_names) == 10


def test_torchvision_files(tmp_path, encoded):
    classes = ["n01440764", "n02102040", "n02979186"]
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            path = tmp_path / "imagenette2-160" / split / name / f"{number}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(encoded(number, "JPEG"))
    config = Torchvision.Config(dataset="imagenette", root=tmp_path, image_size="160px")
    reader = Torchvision(config).open("test")
    assert len(reader) == 3
    assert reader.labels.tolist() == [0, 1, 2]
    assert reader.class_names[0] == "tench"
    assert reader.read(0).shape == (40, 48, 3)
    assert reader.describe(1).endswith("imagenette2-160/val/n02102040/1.JPEG")


class Memory:
    """The attributes that torchvision's in-memory data sets have."""

    def __init__(self, data, **labels):
        self.data = data
        self.__dict__.update(labels)


def test_torchvision_layouts_become_height_width_channels():
    planes = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    reader = torchvision_source._array_reader(Memory(planes, labels=np.array([1, 0])))
    assert reader.image_size == (4, 5)
    assert np.array_equal(reader.read(1), planes[1].transpose(1, 2, 0))
    assert reader.class_names == ("0", "1")
    rows = np.zeros((2, 4, 5, 3), np.uint8)
    reader = torchvision_source._array_reader(Memory(rows, targets=[0, 1], classes=["a", "b"]))
    assert reader.image_size == (4, 5)
    assert reader.class_names == ("a", "b")
    grey = Memory(torch.zeros(2, 28, 28, dtype=torch.uint8), targets=torch.tensor([0, 1]))
    assert torchvision_source._array_reader(grey).read(0).shape == (28, 28, 1)
    unlabelled = torchvision_source._array_reader(Memory(planes, labels=np.array([1, -1])))
    assert unlabelled.labels is None


def test_torchvision_missing_files_say_what_to_do(tmp_path):
    missing = Torchvision(Torchvision.Config(dataset="cifar10", root=tmp_path / "dta"))
    with pytest.raises(RecipeError, match=r"data.root: .*dta does not exist; expected a folder"):
        missing.open("train")
    for name in ("cifar100", "stl10", "svhn", "fashion_mnist", "imagenette"):
        empty = Torchvision(Torchvision.Config(dataset=name, root=tmp_path))
        with pytest.raises(RecipeError, match=r"data.download=true") as caught:
            empty.open("train")
        assert "\n" not in str(caught.value)


def test_torchvision_failed_download_is_a_data_error(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    source = Torchvision(Torchvision.Config(dataset="mnist", root=tmp_path, download=True))
    with pytest.raises(DataError, match="mnist could not be downloaded") as caught:
        source.open("train")
    assert "\n" not in str(caught.value)


def test_torchvision_splits_are_checked():
    with pytest.raises(ValueError, match=r"'unlabeled' does not exist for cifar10; valid: train"):
        Torchvision.Config(dataset="cifar10", train_split="unlabeled")
    assert Torchvision.Config(dataset="stl10", train_split="unlabeled").train_split == "unlabeled"


def test_sample_positions_hold_both_ends():
    assert sample_positions(5, "x", 10) == [0, 1, 2, 3, 4]
    chosen = sample_positions(10_000, "x", 64)
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, 9999)
    assert 60 <= len(chosen) <= 64
    assert chosen == sample_positions(10_000, "x", 64)
    assert chosen != sample_positions(10_000, "y", 64)


def test_digits_are_those_of_scikit_learn() -> None:
    """Its file is read without it."""
    from sklearn.datasets import load_digits

    from sslkit.builtin.sources import digits

    theirs, (images, labels) = load_digits(), digits._load()
    assert np.array_equal(images, theirs.images)
    assert images.dtype == theirs.images.dtype
    assert np.array_equal(labels, theirs.target)


@pytest.mark.parametrize(
    ("source", "field"),
    [
        (Digits, "size"),
        *((s, f) for s in (Synthetic, Scenes) for f in ("num_train", "num_test", "size")),
    ],
)
@pytest.mark.parametrize("value", [10**9, 10**30])
def test_numbers_of_images_that_fit_nowhere_are_refused(source, field, value):
    """A number of its factors is drawn for each image as a source is opened."""
    with pytest.raises(ValidationError, match="less than or equal to"):
        source.Config(**{field: value})
