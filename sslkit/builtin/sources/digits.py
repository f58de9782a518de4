"""scikit-learn's handwritten digits: 1,797 grey images that need no download."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sslkit.api import DataSource, DataSourceConfig
from sslkit.builtin.sources.arrays import ArrayReader


class Digits(DataSource):
    """1,797 handwritten digits (UCI "Optical recognition of handwritten digits", its test part, as
    shipped with scikit-learn), 8 x 8 pixels, one channel, ten classes."""

    divides_itself = True

    class Config(DataSourceConfig):
        """Fields of the `digits` source."""

        size: int = Field(default=32, ge=1, le=8192)
        """Side in pixels to which the 8 x 8 originals are enlarged (bilinear); 8 leaves them."""
        test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
        """Part of each class that is kept for testing, chosen by a hash of the image's number. The
        same images for every seed."""
        test_seed: Literal[0] = 0
        """There is one division only."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> ArrayReader:
        """The reader of a split. Needs no files beyond scikit-learn's."""
        originals, labels = _load()
        in_test = _test_mask(labels, self.config.test_fraction)
        chosen = in_test if split == "test" else ~in_test
        images = _enlarged(originals[chosen], self.config.size)
        return ArrayReader(images, labels[chosen], tuple(str(name) for name in range(10)))


def _load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8), values 0 to 16, and labels (1797,). scikit-learn's file is read without
    scikit-learn, which takes longer to import than all else that checks a recipe."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # a release that keeps it elsewhere

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


def _test_mask(labels: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """(N,) True for the part of each class, rounded, whose hashes of the position are lowest."""
    hashes = np.array(
        [hashlib.blake2b(f"digits\0{i}".encode()).digest()[:8].hex() for i in range(len(labels))]
    )
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        mask[members[np.argsort(hashes[members], kind="stable")[:count]]] = True
    return mask


def _enlarged(images: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """(N, 8, 8) values 0 to 16 to (N, size, size, 1) uint8."""
    import torch
    from torch.nn import functional

    scaled = torch.from_numpy(images).float()[:, None] * (255.0 / 16.0)
    if size != images.shape[1]:
        scaled = functional.interpolate(scaled, (size, size), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = scaled.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(pixels)
