"""A split whose images come one after the other, and that knows no number of them."""

from __future__ import annotations

import numpy as np

from sslkit.api import ImageStream, UnreadableImageError


class Numbers(ImageStream):
    """Image n is stored as n, and shows it in its first two values; noise in the others."""

    channels, image_size = 3, (16, 16)

    def __init__(self, epoch_samples=40, shuffle=1, end=None, damaged=()):
        self.epoch_samples, self.shuffle = epoch_samples, shuffle
        self.end, self.damaged = end, set(damaged)
        self.opened = []
        self.taken = 0

    def stored(self, position):
        self.opened.append(position)
        while self.end is None or position < self.end:
            self.taken += 1
            yield position
            position += 1

    def decode(self, stored):
        if stored in self.damaged:
            raise UnreadableImageError(f"{stored} is damaged")
        image = np.random.default_rng(stored).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        image[0, 0, :2] = divmod(stored, 256)
        return image

    def fingerprint(self):
        return "numbers"
