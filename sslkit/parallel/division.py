"""Which rows of a batch each rank passes through its networks, and in which order.

A batch is cut into micro-batches, and each of these among the ranks: so the images that pass at one
time, and share batch statistics, are the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sslkit.errors import RecipeError


@dataclass(frozen=True)
class Division:
    """How a batch is shared: `parts` micro-batches, one after the other, each of `size` equal
    pieces, one for each rank. The share of a rank is its pieces, in the order of the batch."""

    batch_size: int
    """Images of the whole batch."""
    parts: int = 1
    """Micro-batches."""
    rank: int = 0
    """Whose share this is."""
    size: int = 1
    """How many ranks there are."""

    @classmethod
    def of(
        cls, batch_size: int, micro_batch_size: int | None, rank: int = 0, size: int = 1
    ) -> Division:
        """micro_batch_size: images that pass at a time, on all ranks together; None: all of them.

        Raises RecipeError where ranks would have unequal shares."""
        at_a_time = min(micro_batch_size or batch_size, batch_size)
        if at_a_time % size:
            field = "batch_size" if at_a_time == batch_size else "micro_batch_size"
            nearest = max(round(at_a_time / size), 1) * size
            raise RecipeError(
                f"train.{field}: {at_a_time} images cannot be shared equally by {size} processes; "
                f"choose a multiple of {size}, such as {nearest}, or another number of processes"
            )
        return cls(batch_size, batch_size // at_a_time, rank, size)

    @property
    def is_whole(self) -> bool:
        """Whether the batch passes at once, on one rank."""
        return self.parts == self.size == 1

    @property
    def at_a_time(self) -> int:
        """Images that pass at a time, on all ranks together."""
        return self.batch_size // self.parts

    @property
    def piece(self) -> int:
        """Images that pass at a time on one rank."""
        return self.at_a_time // self.size

    @property
    def share(self) -> int:
        """Images of the batch that are this rank's."""
        return self.piece * self.parts

    @cached_property
    def rows(self) -> Tensor:
        """(share,) int64: the places of this rank's images in the batch, ascending."""
        places = torch.arange(self.batch_size).view(self.parts, self.size, self.piece)
        return places[:, self.rank].flatten()

    def pieces(self) -> Sequence[slice]:
        """For each micro-batch, where its piece stands in this rank's share."""
        return [slice(part * self.piece, (part + 1) * self.piece) for part in range(self.parts)]

    def pieces_in_batch(self) -> Sequence[slice]:
        """For each micro-batch, where its piece stands in the batch."""
        starts = [self.peers(part).start + self.first_peer for part in range(self.parts)]
        return [slice(start, start + self.piece) for start in starts]

    def peers(self, part: int) -> slice:
        """The rows of the batch that pass together in a micro-batch, on all ranks."""
        return slice(part * self.at_a_time, (part + 1) * self.at_a_time)

    @property
    def first_peer(self) -> int:
        """Where this rank's piece begins among those that pass together."""
        return self.rank * self.piece

    def in_order(self, gathered: Tensor) -> Tensor:
        """The shares of all ranks, one after the other, as rows of the batch: (B, ...) both."""
        if self.parts == 1 or self.size == 1:
            return gathered
        shape = (self.size, self.parts, self.piece, *gathered.shape[1:])
        return gathered.view(shape).transpose(0, 1).reshape(gathered.shape)
