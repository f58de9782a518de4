"""What the losses share: statistics of a batch of embeddings, and pairs of views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """(D, D) to (D - 1, D): the entries off the diagonal, without a copy of a contiguous matrix.

    Behind its first entry, a matrix is rows of D + 1 of which the last is on the diagonal."""
    width = len(matrix)
    return matrix.flatten()[1:].view(width - 1, width + 1)[:, :-1]


def mean_over_pairs(views: Sequence[Tensor], of_pair: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of a function of two views over all pairs of views.

    views: V >= 2 tensors (B, D) with B >= 2. Raises ValueError for others."""
    check_views(views)
    return torch.stack([of_pair(a, b) for a, b in combinations(views, 2)]).mean(dim=0)


def check_views(views: Sequence[Tensor], least: int = 2) -> None:
    """Raises ValueError where these are not `least` or more tensors of one shape (B, D), B >= 2."""
    if len(views) < least:
        raise ValueError(f"this loss needs at least {least} views, not {len(views)}")
    shapes = sorted({tuple(view.shape) for view in views})
    if len(shapes) > 1 or len(shapes[0]) != 2 or shapes[0][0] < 2:
        said = " and ".join(map(str, shapes))
        raise ValueError(f"views must be of one shape (B, D) with at least 2 images, not {said}")
