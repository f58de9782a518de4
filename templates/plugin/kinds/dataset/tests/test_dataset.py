"""What is read, what is refused, and that the fingerprint follows the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sslkit.api import ImageReader
from sslkit.errors import DataError

from sslkit_newname.dataset import NewName

IMAGES = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)
LABELS = np.array([0, 1, 0, 1, 2])


def reader(folder: Path) -> ImageReader:
    found = NewName(NewName.Config(path=folder)).open("train")
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "train.npy", IMAGES)
    np.save(tmp_path / "train_labels.npy", LABELS)
    return tmp_path


def test_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    found = reader(folder)
    assert (len(found), found.image_size, found.channels) == (5, (4, 6), 3)
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    assert all(np.array_equal(found.read(index), IMAGES[index]) for index in range(5))


def test_grey_images_get_an_axis_of_channels(folder: Path) -> None:
    np.save(folder / "train.npy", IMAGES[..., 0])
    assert reader(folder).read(0).shape == (4, 6, 1)


def test_labels_and_the_test_split_may_be_missing(folder: Path) -> None:
    (folder / "train_labels.npy").unlink()
    assert reader(folder).labels is None
    assert NewName(NewName.Config(path=folder)).open("test") is None


def test_the_fingerprint_changes_with_a_pixel_and_with_a_label(folder: Path) -> None:
    found = {reader(folder).fingerprint()}
    changed = IMAGES.copy()
    changed[4, 3, 5, 2] += 1
    np.save(folder / "train.npy", changed)
    found.add(reader(folder).fingerprint())
    np.save(folder / "train_labels.npy", LABELS[::-1])
    found.add(reader(folder).fingerprint())
    assert len(found) == 3


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train.npy", IMAGES.astype(np.float32)),
        ("train.npy", IMAGES[0, 0]),
        ("train_labels.npy", LABELS[:4]),
        ("train_labels.npy", LABELS / 2),
        ("train.npy", np.array([{"a": 1}])),
    ],
    ids=["float images", "no images", "too few labels", "no whole labels", "an object"],
)
def test_other_arrays_are_refused(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / name, array)
    with pytest.raises(DataError, match=name):
        reader(folder)


def test_the_sample_has_both_splits() -> None:
    source = NewName(NewName.Config())
    sizes = [len(found) for split in ("train", "test") if (found := source.open(split))]
    assert sizes == [240, 120]
