"""Classifiers on fixed features, and how their predictions are scored.

Shapes: N training rows, M query rows, F feature width, C classes, k neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24
"""Similarities held at once (64 MiB of float32); the chunk of queries follows from the shapes."""
_VOTE_SCALE = 2.0**40
"""Votes are whole multiples of 2**-40 of the largest weight. Sums of integers do not depend on
their order, so equal scores are equal on every device."""


def top1_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Part of predictions (M,) that equal the labels (M,)."""
    return int((predictions == labels).sum()) / len(labels) if len(labels) else float("nan")


def mean_class_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Accuracy within each class, averaged over the classes that occur in `labels`."""
    counts = labels.bincount()
    correct = labels[predictions == labels].bincount(minlength=len(counts))
    present = counts > 0
    return float((correct[present] / counts[present]).mean())


def knn_predict(
    train: Tensor,  # (N, F)
    train_labels: Tensor,  # (N,) int64
    queries: Tensor,  # (M, F)
    *,
    num_classes: int,
    k: int,
    temperature: float,
) -> Tensor:
    """Classes (M,) by the weighted vote of the k nearest training rows (Wu et al. 2018,
    arXiv:1805.01978).

    Rows are L2-normalised; each of the k neighbours with the highest cosine similarity votes for
    its class with weight exp((similarity - highest similarity) / temperature). Ties between
    neighbours and between classes go to the lower index. A k above N counts every row."""
    k = min(k, len(train))
    bank = F.normalize(train.float(), dim=1).T
    rows = max(1, _BLOCK_ELEMENTS // len(train))
    predictions = []
    for chunk in torch.split(queries, rows):
        similarity = F.normalize(chunk.float(), dim=1) @ bank  # (rows, N)
        top = similarity.topk(min(k + 1, len(train)), dim=1)
        values, neighbours = top.values[:, :k], top.indices[:, :k]
        if k < len(train):
            tied = top.values[:, k - 1] == top.values[:, k]
            if tied.any():  # topk breaks ties as it likes
                neighbours, values = neighbours.clone(), values.clone()
                neighbours[tied] = _first_neighbours(similarity[tied], values[tied, -1:], k)
                values[tied] = similarity[tied].gather(1, neighbours[tied])
        votes = _votes(values, train_labels[neighbours], num_classes, temperature)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def _first_neighbours(similarity: Tensor, threshold: Tensor, k: int) -> Tensor:
    """(rows, k) indices of everything above the threshold (rows, 1), which is the k-th highest
    value, filled up with the first rows that equal it."""
    above = similarity > threshold
    level = similarity == threshold
    room = k - above.sum(dim=1, keepdim=True)
    keep = above | (level & (level.cumsum(dim=1) <= room))
    return keep.nonzero()[:, 1].view(len(similarity), k)


def _votes(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """(rows, C) int64 sums of the weights of the neighbours, given as (rows, k)."""
    highest = similarity.max(dim=1, keepdim=True).values
    weights = (((similarity - highest) / temperature).exp() * _VOTE_SCALE).round().long()
    votes = torch.zeros(len(labels), num_classes, dtype=torch.int64, device=labels.device)
    return votes.scatter_add_(1, labels, weights)
