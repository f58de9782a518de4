"""Readers of splits whose samples come one after the other and whose number is not known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import ImageReader, SplitReader


class StreamReader(SplitReader):
    """A split that is read from front to back, such as tar shards or a service: samples have
    positions 0, 1, 2, ... without end. An epoch is as many as `epoch_samples`, and the next one
    goes on where it ended.

    `stored(position)` gives what comes from there on: the same each time, so that a resumed run
    reads what it would have read. The host opens it at the start, after a resume and for an
    evaluation, then takes one after the other, from one thread at a time; `decode` is called by
    several threads at once. Images derive from `ImageStream`.

    What is asked of a split as a whole is asked of its first epoch: batch statistics, and features
    where an evaluation takes training images. A stream has no labels: entries of `evaluate` bring
    `data` that has some."""

    epoch_samples: int
    """Samples that a run calls an epoch."""
    shuffle: int = 1
    """Samples that are shuffled among each other, one such group after the other; about as many are
    held in memory as they are stored. 1: as they come."""

    @abstractmethod
    def stored(self, position: int) -> Iterator[Any]:
        """The samples from a position on, as they are stored, such as the bytes of files. It does
        not end: after the last shard comes the first. An OSError is retried from where it was."""

    @abstractmethod
    def decode(self, stored: Any) -> NDArray[Any]:
        """The sample of what `stored` gave, as `sample` says. Raises UnreadableImageError for a
        damaged one; the next readable one takes its place."""

    def __len__(self) -> int:
        return self.epoch_samples

    def read(self, index: int) -> NDArray[Any]:
        return self.decode(next(iter(self.stored(index))))


class ImageStream(StreamReader, ImageReader):
    """A split of images that is read from front to back."""

    @abstractmethod
    def decode(self, stored: Any) -> NDArray[np.uint8]:
        """The image as (H, W, C) uint8. Raises UnreadableImageError for a damaged one."""
