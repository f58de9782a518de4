"""A reader over images that are in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sslkit.interfaces import ImageReader


class ArrayReader(ImageReader):
    """Images of one size from one array. The fingerprint covers every byte.

    images: (N, H, W, C) uint8. labels: (N,) integers, or None.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self.images = images
        self.channels = images.shape[3]
        self.image_size = (images.shape[1], images.shape[2])
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.images[index]
        return image

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        digest.update("\0".join(self.class_names or ()).encode())
        return digest.hexdigest()
