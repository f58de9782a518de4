"""Images in .npy files.

Shapes: N images of a split, H x W pixels, C channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sslkit.api import DataSource, DataSourceConfig, ImageReader
from sslkit.errors import DataError

SAMPLE = Path(__file__).parent / "sample"
"""Gratings of four orientations, 12 x 12 pixels, one channel."""


class NewName(DataSource):
    """Images and labels of a folder with train.npy, train_labels.npy, test.npy, test_labels.npy."""

    class Config(DataSourceConfig):
        path: Path | None = None
        """The folder; null: the sample that comes with this package."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.folder = config.path or SAMPLE

    def open(self, split: Literal["train", "test"]) -> NpyReader | None:
        path = self.folder / f"{split}.npy"
        if not path.exists() and split == "test":
            return None
        images, labels = opened(path), None
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DataError(
                f"data.path: {path} holds {images.ndim} axes of {images.dtype}; expected images, "
                "(N, H, W) or (N, H, W, C) uint8"
            )
        path = self.folder / f"{split}_labels.npy"
        if path.exists():
            labels = opened(path)
            if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
                raise DataError(
                    f"data.path: {path} holds {labels.shape} {labels.dtype}; expected a whole "
                    f"number for each of {len(images)} images"
                )
        return NpyReader(images, labels)


class NpyReader(ImageReader):
    """One split. Reading a mapped array is safe from several threads: there is no position in a
    file that they would share."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.integer] | None) -> None:
        self._images = images if images.ndim == 4 else images[..., None]
        _, height, width, self.channels = self._images.shape
        self.image_size = (height, width)
        if labels is not None:
            self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._images[index]
        return image

    def fingerprint(self) -> str:
        """A hash of all pixels and labels, a part at a time."""
        digest = hashlib.blake2b(repr(self._images.shape).encode(), digest_size=8)
        for start in range(0, len(self), 1024):
            digest.update(self._images[start : start + 1024].tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


def opened(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped into memory. Raises DataError."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.path: {path} cannot be read as .npy: {error}") from error
    return array
