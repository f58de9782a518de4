"""Codes by the Sinkhorn-Knopp algorithm: assignments in which all prototypes have equal parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.nn.numerics import full_precision


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    past: Tensor | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, K) codes, without gradient: `exp(scores / epsilon)`, scaled in turns until each prototype
    has the same part of the images and each image sums to 1, which it does exactly.

    scores: (B, K). past: (N, K) scores of earlier images, which are scaled along and left out of
    the result. gather: gives the rows of all processes, where the images are divided among them;
    `past` is then the same on all. Computed as logarithms, in float32 (float64 stays), so that no
    epsilon overflows.
    Source: Caron et al. 2020, arXiv 2006.09882, equations 3 to 5; Cuturi 2013, arXiv 1306.0895.
    """
    logs = full_precision(scores) / epsilon
    earlier = logs[:0] if past is None else past.to(logs) / epsilon
    for _ in range(iterations):
        own = logs.logsumexp(dim=0, keepdim=True)
        parts = [own if gather is None else gather(own)]
        if len(earlier):
            parts.append(earlier.logsumexp(dim=0, keepdim=True))
        prototypes = torch.cat(parts).logsumexp(dim=0)
        logs, earlier = (_of_images(each - prototypes) for each in (logs, earlier))
    return logs.exp()


def _of_images(logs: Tensor) -> Tensor:
    """Rows scaled to the sum 1."""
    return logs - logs.logsumexp(dim=1, keepdim=True)
