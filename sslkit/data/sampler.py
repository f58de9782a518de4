"""Which samples make up each batch: what stands between a data source and the loader.

A source reads by position and knows no batches; a loader makes views of the positions that it is
given and knows no order. Whoever divides batches among ranks or weights classes writes a sampler
and changes neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sslkit.api import SplitReader, StreamReader
from sslkit.errors import RecipeError
from sslkit.randomness import Order


class Sampler(ABC):
    """The batches of each epoch, as positions in a split.

    Its state is the step: `batch` follows from (epoch, step) alone and is asked in any order, also
    for steps that were never reached before, as after a resume. It is called in the thread of the
    training, some steps ahead of the batch that is trained on. What it keeps is a matter of speed.

    Ranks share a batch: that of a rank is a part of it.
    """

    batch_size: int
    """Samples in each batch."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def batch(self, epoch: int, step: int) -> Tensor:
        """(batch_size,) int64 on the CPU: the positions of a batch. step: counted in the epoch."""


class ShuffledSampler(Sampler):
    """Every sample of a split once an epoch, in an order that (seed, epoch) choose. The last,
    partial batch is left out; the order changes with each epoch, so over a run every sample is
    used."""

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rows: Tensor | None = None
    ) -> None:
        """rows: (n,) positions of the samples to use, on the CPU, where it is not all of them.
        Raises RecipeError where they do not make one batch."""
        self._count = num_samples if rows is None else len(rows)
        if batch_size > self._count:
            raise RecipeError(
                f"train.batch_size: {batch_size} is more than the {self._count} training "
                f"images; choose at most {self._count}"
            )
        self.batch_size = batch_size
        self._seed = seed
        self._rows = rows
        self._last: tuple[int, Order] | None = None
        """The order of the epoch that was asked for last: a small one is sorted as a whole."""

    @property
    def steps_per_epoch(self) -> int:
        return self._count // self.batch_size

    def batch(self, epoch: int, step: int) -> Tensor:
        start = step * self.batch_size
        places = self._order(epoch)[start : start + self.batch_size]
        return places if self._rows is None else self._rows[places]

    def _order(self, epoch: int) -> Order:
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, Order(self._seed, epoch, self._count)
        return self._last[1]


class StreamSampler(Sampler):
    """The samples of a stream, each once: an epoch goes on where the one before it ended. They are
    shuffled in groups, one after the other, in an order that (seed, group) choose."""

    def __init__(self, epoch_samples: int, batch_size: int, seed: int, shuffle: int) -> None:
        """shuffle: samples in a group; 1: they stay as they come."""
        self.batch_size = batch_size
        self._steps = epoch_samples // batch_size
        self._seed = seed
        self._shuffle = shuffle

    @property
    def steps_per_epoch(self) -> int:
        return self._steps

    def batch(self, epoch: int, step: int) -> Tensor:
        start = (epoch * self._steps + step) * self.batch_size
        return shuffled_positions(start, start + self.batch_size, self._shuffle, self._seed)


def sampler_of(reader: SplitReader, batch_size: int, seed: int) -> Sampler:
    """The one that suits a split. Raises RecipeError where its samples do not make one batch."""
    if isinstance(reader, StreamReader):
        return StreamSampler(reader.epoch_samples, batch_size, seed, reader.shuffle)
    return ShuffledSampler(len(reader), batch_size, seed)


def shuffled_positions(start: int, stop: int, group: int, seed: int) -> Tensor:
    """(stop - start,) int64: the places from start to stop of a stream that is shuffled in groups
    of so many samples."""
    parts = []
    while start < stop:
        number, first = divmod(start, group)
        last = min(group, first + stop - start)
        parts.append(Order(seed, number, group)[first:last] + number * group)
        start += last - first
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
