"""Images that a program has in its hands, as a reader: an array, a tensor, a list, or a map-style
data set of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sslkit.api import ImageReader, UnreadableImageError
from sslkit.errors import DataError

_VALID = (
    "valid are PIL images, uint8 arrays (H, W, C) and uint8 tensors (C, H, W); leave out ToTensor "
    "and Normalize: augmentations take pixels, and encoders normalise by themselves"
)


class GivenImages(ImageReader):
    """See `sslkit.read_images`."""

    def __init__(self, images: Any, labels: Any, class_names: Sequence[str] | None) -> None:
        if len(images) == 0:
            raise DataError("images: there are none")
        self._images = images
        first = _pixels(images[0], 0, None)
        self.channels = first.shape[2]
        if isinstance(images, np.ndarray | Tensor):
            self.image_size = first.shape[:2]
            self.samples = _channels_first(images)
        self.labels = _checked(labels, len(images))
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> NDArray[np.uint8]:
        try:
            return _pixels(self._images[index], index, self.channels)
        except UnidentifiedImageError as error:
            raise UnreadableImageError(str(error)) from error

    def fingerprint(self) -> str:
        """A hash of every pixel and every label."""
        digest = hashlib.blake2b(digest_size=8)
        for index in range(len(self)):
            image = self.read(index)
            digest.update(repr(image.shape).encode())
            digest.update(np.ascontiguousarray(image).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def given_images(
    images: Any, labels: Any = None, class_names: Sequence[str] | None = None
) -> GivenImages:
    """See `sslkit.read_images`."""
    labels = _labels_of(images) if labels is None else labels
    return GivenImages(images, labels, class_names or _named_classes(images))


def _labels_of(images: Any) -> Any:
    """What torchvision's data sets, and parts of them, call labels; None where there are none."""
    whole, rows = getattr(images, "dataset", None), getattr(images, "indices", None)
    if whole is not None and rows is not None:
        labels = _labels_of(whole)
        return None if labels is None else np.asarray(labels)[np.asarray(rows)]
    for name in ("targets", "labels"):
        if (found := getattr(images, name, None)) is not None:
            return found
    return None


def _named_classes(images: Any) -> Sequence[str] | None:
    found = getattr(getattr(images, "dataset", images), "classes", None)
    return None if found is None else tuple(map(str, found))


def _checked(labels: Any, count: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    found = np.asarray(labels)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DataError(
            f"labels: {found.dtype} {found.shape}; valid are {count} whole numbers, one for each "
            "image, -1 for none"
        )
    return found.astype(np.int64)


def _channels_first(images: Any) -> NDArray[np.uint8]:
    """(N, C, H, W) of an array (N, H, W, C) or a tensor (N, C, H, W), both with or without C."""
    if isinstance(images, Tensor):
        samples = images.detach().cpu().numpy()
        samples = samples if samples.ndim == 4 else samples[:, None]
    else:
        samples = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    return np.ascontiguousarray(samples)


def _pixels(item: Any, index: int, channels: int | None) -> NDArray[np.uint8]:
    """An image, or a tuple that begins with one, as (H, W, C). channels: of the first image, which
    those of files are converted to."""
    image = item[0] if isinstance(item, tuple | list) else item
    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L") if channels is None else channels == 1
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    elif isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
        pixels = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        given = type(image).__name__
        raise DataError(
            f"images: image {index} is a {given} {pixels.dtype} {pixels.shape}; {_VALID}"
        )
    return pixels
