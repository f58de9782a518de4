"""A first-in-first-out queue of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .numerics import normalize


class FeatureQueue(nn.Module):
    """The last `size` feature rows, (size, dim) float32, in buffers that a checkpoint covers.

    Any size goes with any batch: rows wrap around, and of a batch larger than the queue the last
    `size` rows stay. `push` belongs into `Method.after_step`, so that an image never meets its own
    key among the negatives. Nothing is read back to the host, `recent` aside.

    The queue starts full of random unit vectors, drawn from torch's generator (MoCo, NNCLR); with
    `random_start=False` it starts empty, and `recent` gives the rows pushed so far (SwAV).
    Raises ValueError for size < 1 or dim < 1. Source: He et al. 2020, arXiv 1911.05722.
    """

    features: Tensor
    pointer: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int, *, random_start: bool = True) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue needs size >= 1 and dim >= 1, not {size} and {dim}")
        start = normalize(torch.randn(size, dim)) if random_start else torch.zeros(size, dim)
        self.register_buffer("features", start)
        self.register_buffer("pointer", torch.tensor(0))
        """Position of the oldest row, which the next row replaces."""
        self.register_buffer("pushed", torch.tensor(size if random_start else 0))
        """Rows that hold something, at most `size`."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def recent(self) -> Tensor:
        """The rows that hold something, (n, dim), in no particular order. Reads one number back
        from the device."""
        return self.features[: int(self.pushed)]

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replaces the oldest rows by `rows` (n, dim). Raises ValueError for another width."""
        size, dim = self.features.shape
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise ValueError(f"the queue holds rows of width {dim}, not {tuple(rows.shape)}")
        rows = rows[-size:].to(self.features.dtype)
        offsets = torch.arange(len(rows), device=self.features.device)
        self.features.index_copy_(0, (self.pointer + offsets) % size, rows)
        self.pointer.add_(len(rows)).remainder_(size)
        self.pushed.add_(len(rows)).clamp_(max=size)
