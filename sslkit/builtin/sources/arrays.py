"""A reader over images that are in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sslkit.api import ImageReader

_HASHED_AT_ONCE = 1024


class ArrayReader(ImageReader):
    """Images of one size from one array. The fingerprint covers every byte.

    images: (N, H, W, C) uint8; kept as (N, C, H, W), which training uses without another copy.
    labels: (N,) integers, or None.
    """

    samples: NDArray[np.uint8]

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self.samples = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        self.channels = images.shape[3]
        self.image_size = (images.shape[1], images.shape[2])
        self.labels = labels
        self.class_names = class_names

    @property
    def images(self) -> NDArray[np.uint8]:
        """(N, H, W, C)."""
        return self.samples.transpose(0, 2, 3, 1)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.images[index]
        image.flags.writeable = False  # a part of `samples`, which nobody writes to
        return image

    def fingerprint(self) -> str:
        images = self.images
        digest = hashlib.blake2b(repr(images.shape).encode(), digest_size=8)
        for start in range(0, len(images), _HASHED_AT_ONCE):
            digest.update(np.ascontiguousarray(images[start : start + _HASHED_AT_ONCE]).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        digest.update("\0".join(self.class_names or ()).encode())
        return digest.hexdigest()
