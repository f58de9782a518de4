"""Views that are assigned to prototypes: codes in which prototypes have equal parts, and how well
other views predict an assignment.

Shapes: B images, V views of each, of which G are assigned, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .numerics import full_precision, without_autocast


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
    epsilon overflows. Of patches, rows are those of all images.
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


def pairs_of_views(assigned: Sequence[int], views: int) -> Tensor:
    """(G, V): 1 for each pair of a view that is assigned, at the G positions `assigned`, and
    another of the V views, which predicts its assignment; 0 for a view and itself."""
    pairs = torch.ones(len(assigned), views)
    pairs[range(len(assigned)), list(assigned)] = 0.0
    return pairs


def cross_entropy_of_views(logits: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
    """The mean over images, and over pairs of an assigned view and one that predicts it, of
    -sum_k target_k log softmax(logits)_k: ln K where logits are equal.

    logits: (B, V, K) of all views; target: (B, G, K), probabilities, without gradient; pairs:
    (G, V), 1 for each pair that counts and 0 elsewhere, see `pairs_of_views`. Computed in float32
    (float64 stays).
    Source: Caron et al. 2020, arXiv 2006.09882, equation 2, and 2021, arXiv 2104.14294, equation 3.
    """
    with without_autocast(logits):
        logits, target = full_precision(logits), full_precision(target)
        # Targets of a view are added up first: one dot product over images and prototypes would
        # add all terms one after the other, and lose the fourth digit in float32.
        of_view = torch.einsum("gv,bgk->bvk", pairs.to(target), target)
        terms = (of_view * logits.log_softmax(dim=-1)).sum(dim=-1)
        return -terms.sum(dim=1).mean() / pairs.sum()
