"""Several tensors of as many rows as one, so that one message carries them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """Where one tensor lies in the rows of bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """What one row has."""

    @property
    def nbytes(self) -> int:
        """Bytes in one row."""
        return math.prod(self.shape) * self.dtype.itemsize


def packed(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Sequence[Column]]:
    """(n, bytes of a row) uint8 of tensors that all have n rows, and what lies where."""
    layout = [Column(name, t.dtype, tuple(t.shape[1:])) for name, t in tensors.items()]
    rows = [
        value.detach().contiguous().view(len(value), -1).view(torch.uint8)
        for value in tensors.values()
        if value.numel()
    ]
    return torch.cat(rows, dim=1), layout


def unpacked(rows: Tensor, layout: Sequence[Column]) -> dict[str, Tensor]:
    """The tensors again, of as many rows as there are now."""
    found, start = {}, 0
    for column in layout:
        part = rows[:, start : start + column.nbytes].contiguous()
        start += column.nbytes
        found[column.name] = part.view(column.dtype).view(len(rows), *column.shape)
    return found
