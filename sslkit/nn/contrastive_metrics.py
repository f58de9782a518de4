"""How well anchors find their positives, in strips of the similarity matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .contrastive import check_pair
from .log_partition import DEFAULT_CHUNK_ELEMENTS
from .numerics import full_precision, normalize, without_autocast

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
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
) -> ContrastiveMetrics:
    """Accuracy and entropy of the classification that a contrastive loss solves.

    query, key: (B, D); negatives: (K, D) or None; unnormalised. The candidates are those of
    `info_nce`, or those of `nt_xent` with `both_views`, in this process: other ranks have no part
    in it, so that a metric can be read on one of them alone. Raises ValueError as the losses do.
    """
    check_pair(query, key, temperature, negatives, chunk_elements)
    with torch.no_grad(), without_autocast(query):
        anchors, candidates = normalize(query), normalize(key)
        positives = None
        targets = torch.arange(len(query), device=query.device)
        if both_views:
            anchors = candidates = torch.cat([anchors, candidates])
            targets = torch.cat([targets + len(query), targets])
        elif negatives is not None:
            positives = (anchors * candidates).sum(dim=1, keepdim=True) / temperature
            candidates, targets = normalize(negatives), torch.zeros_like(targets)
        tolerance = _INDISTINGUISHABLE / temperature
        height = max(1, chunk_elements // len(candidates))
        scores = []
        for start in range(0, len(anchors), height):
            rows = slice(start, start + height)
            logits = (anchors[rows] / temperature) @ candidates.T
            if both_views:
                logits.diagonal(start).fill_(-math.inf)
            elif positives is not None:
                logits = torch.cat([positives[rows], logits], dim=1)
            hits = _expected_hits(logits, targets[rows], (1, 5), tolerance)
            scores.append(torch.stack([*hits, _entropies(logits)]))
        return ContrastiveMetrics(*torch.cat(scores, dim=1).mean(dim=1))


def topk_accuracy(
    logits: Tensor, target: Tensor, ks: Sequence[int], tolerance: float = 0.0
) -> tuple[Tensor, ...]:
    """Expected top-k accuracy, ties broken at random. logits: (B, C), target: (B,) int64.
    Logits no more than `tolerance` apart are tied."""
    return tuple(hits.mean() for hits in _expected_hits(logits, target, ks, tolerance))


def softmax_entropy(logits: Tensor) -> Tensor:
    """Mean entropy over the rows of logits (B, C), in nats. Entries of -inf have probability 0."""
    return _entropies(logits).mean()


def _expected_hits(
    logits: Tensor, target: Tensor, ks: Sequence[int], tolerance: float
) -> list[Tensor]:
    """For each k: (B,) chances that the target is among the best k."""
    margin = logits - logits.gather(1, target[:, None])
    better = (margin > tolerance).sum(dim=1)
    tied = (margin.abs_() <= tolerance).sum(dim=1)  # counts the target itself
    return [((k - better) / tied).clamp(0.0, 1.0) for k in ks]


def _entropies(logits: Tensor) -> Tensor:
    probabilities = full_precision(logits).softmax(dim=1)
    entropies: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return entropies
