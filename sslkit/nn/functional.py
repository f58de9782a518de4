"""Contrastive losses and what to watch beside them, as pure functions; the metrics of
representations (`sslkit.nn.representation`) can be imported from here too.

The losses take unnormalised embeddings, leave autocast, and compute in float32 (float64 stays
float64). Shapes: B images, D embedding width, K further negatives, M = 2 B anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .numerics import full_precision, normalize, without_autocast
from .representation import alignment, feature_std, rankme, uniformity

__all__ = [
    "ContrastiveMetrics",
    "alignment",
    "contrastive_accuracy_and_entropy",
    "feature_std",
    "info_nce",
    "normalize",
    "nt_xent",
    "rankme",
    "softmax_entropy",
    "topk_accuracy",
    "uniformity",
]


class _SelfContrast(torch.autograd.Function):
    """Per-anchor NT-Xent (M,) of unit rows z (M, D), whose row i has its positive at i +- M/2.

    Holds one (M, M) matrix, worked on in place: logits, then probabilities P, then P - Y, which
    is the gradient with respect to the logits. Whatever replaces it for larger batches (row
    strips that are recomputed in the backward pass) keeps this signature.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> Tensor:
        num_anchors = len(z)
        anchors = torch.arange(num_anchors, device=z.device)
        positives = anchors.roll(num_anchors // 2)
        logits = (z / temperature) @ z.T
        logits.fill_diagonal_(-math.inf)
        logits.sub_(logits.amax(dim=1, keepdim=True))
        # Relative to the row's maximum: exact for a confident anchor, where log-sum-exp minus the
        # positive would cancel.
        positive = logits[anchors, positives]
        exponentials = logits.exp_()
        partition = exponentials.sum(dim=1)
        if ctx.needs_input_grad[0]:
            gradient = exponentials.div_(partition[:, None])
            gradient[anchors, positives] -= 1.0
            ctx.save_for_backward(z, gradient)
            ctx.temperature = temperature
        return partition.log_().sub_(positive)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        z, gradient = ctx.saved_tensors
        # Logit (i, j) is a product of rows i and j, so it sends a gradient to both.
        to_rows = (gradient @ z).mul_(upstream[:, None])
        to_columns = gradient.T @ (z * upstream[:, None])
        return to_rows.add_(to_columns).div_(ctx.temperature), None


def nt_xent(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """NT-Xent: the mean over 2 B anchors of a softmax cross entropy among 2 B - 1 candidates.

    z_a, z_b: (B, D) embeddings of two views, unnormalised; row i of each belongs to image i. The
    candidates of an anchor are all other embeddings of both views; the positive is the image's
    other view. The value is that of the paper; its reference code sums the two halves and so
    reports twice as much. Memory: one (2 B, 2 B) matrix.

    Raises ValueError for shapes that differ or are not (B, D), B < 2, or temperature <= 0.
    Source: Chen et al. 2020, arXiv 2002.05709, equation 1 and algorithm 1.
    """
    _check_pair(z_a, z_b, temperature)
    with without_autocast(z_a):
        z = normalize(torch.cat([full_precision(z_a), full_precision(z_b)]))
        losses: Tensor = _SelfContrast.apply(z, temperature)
        return losses.mean()


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    symmetric: bool = False,
) -> Tensor:
    """InfoNCE: the mean over B queries of a softmax cross entropy.

    query, key: (B, D), unnormalised; key i is the positive of query i. Without `negatives` the
    candidates are the B keys of the batch (CPC, CLIP, MoCo v3); with `negatives` (K, D) they are
    the own key and the K negatives, and no other key of the batch (MoCo v1 and v2).
    `symmetric` averages query to key and key to query; in-batch form only.

    Raises ValueError for shapes that do not fit, temperature <= 0, B < 2 without negatives, or
    `symmetric` with negatives. Source: van den Oord et al. 2018, arXiv 1807.03748, equation 4; He
    et al. 2020, arXiv 1911.05722, equation 1.
    """
    _check_pair(query, key, temperature, negatives)
    with without_autocast(query):
        query, key = normalize(query), normalize(key)
        if negatives is None:
            logits = (query / temperature) @ key.T
            target = torch.arange(len(query), device=query.device)
            loss = F.cross_entropy(logits, target)
            return (loss + F.cross_entropy(logits.T, target)) / 2 if symmetric else loss
        if symmetric:
            raise ValueError("info_nce: symmetric holds for in-batch negatives only")
        positive = (query * key).sum(dim=1) / temperature
        others = ((query / temperature) @ normalize(negatives).T).logsumexp(dim=1)
        # -log(e^p / (e^p + e^o)), without a (B, 1 + K) copy of the logits.
        return -F.logsigmoid(positive - others).mean()


_INDISTINGUISHABLE = 1e-6
"""Cosines this close are equal: float32 rounding must not decide a ranking."""


class ContrastiveMetrics(NamedTuple):
    """How well anchors find their positives; scalars without gradient."""

    top1: Tensor
    """Fraction of anchors whose positive is the best candidate. Ties count as broken at random,
    so that collapsed embeddings score at chance."""
    top5: Tensor
    """Fraction of anchors whose positive is among the best five."""
    entropy: Tensor
    """Mean entropy of the softmax over the candidates, nats; ln(candidates) at the start."""


def contrastive_accuracy_and_entropy(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    both_views: bool = False,
) -> ContrastiveMetrics:
    """Accuracy and entropy of the classification that a contrastive loss solves.

    query, key: (B, D); negatives: (K, D) or None; unnormalised. The candidates are those of
    `info_nce`, or those of `nt_xent` with `both_views`. Raises ValueError as they do.
    """
    _check_pair(query, key, temperature, negatives)
    with torch.no_grad(), without_autocast(query):
        query, key = normalize(query), normalize(key)
        rows = torch.arange(len(query), device=query.device)
        if both_views:
            z = torch.cat([query, key])
            logits = ((z / temperature) @ z.T).fill_diagonal_(-math.inf)
            target = torch.cat([rows + len(query), rows])
        elif negatives is None:
            logits, target = (query / temperature) @ key.T, rows
        else:
            positive = (query * key).sum(dim=1, keepdim=True) / temperature
            logits = torch.cat([positive, (query / temperature) @ normalize(negatives).T], dim=1)
            target = torch.zeros_like(rows)
        tolerance = _INDISTINGUISHABLE / temperature
        top1, top5 = topk_accuracy(logits, target, (1, 5), tolerance)
        return ContrastiveMetrics(top1, top5, softmax_entropy(logits))


def topk_accuracy(
    logits: Tensor, target: Tensor, ks: Sequence[int], tolerance: float = 0.0
) -> tuple[Tensor, ...]:
    """Expected top-k accuracy, ties broken at random. logits: (B, C), target: (B,) int64.
    Logits no more than `tolerance` apart are tied."""
    margin = logits - logits.gather(1, target[:, None])
    better = (margin > tolerance).sum(dim=1)
    tied = (margin.abs() <= tolerance).sum(dim=1)  # counts the target itself
    return tuple(((k - better) / tied).clamp(0.0, 1.0).mean() for k in ks)


def softmax_entropy(logits: Tensor) -> Tensor:
    """Mean entropy over the rows of logits (B, C), in nats. Entries of -inf have probability 0."""
    probabilities = full_precision(logits).softmax(dim=1)
    entropies: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return entropies.mean()


def _check_pair(a: Tensor, b: Tensor, temperature: float, negatives: Tensor | None = None) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"embeddings of two views must both be (B, D), "
            f"not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if negatives is None and len(a) < 2:
        raise ValueError(f"in-batch negatives need at least 2 images, not {len(a)}")
    if negatives is not None and (
        negatives.ndim != 2 or len(negatives) == 0 or negatives.shape[1] != a.shape[1]
    ):
        raise ValueError(
            f"negatives must be (K, {a.shape[1]}) with K >= 1, not {tuple(negatives.shape)}"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
