"""Classifiers on fixed features, and how their predictions are scored.

Shapes: N training rows, M query rows, F feature width, C classes, k neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24
"""Similarities held at once (64 MiB of float32)."""
_BANK_ROWS = 1 << 16
"""Training rows compared at once; each block of them is moved to the device once."""
_BANK_ELEMENTS = 1 << 28
"""Feature values of such a block, at most (1 GiB of float32)."""
_GROUP = 16
"""Columns that are represented by their maximum in the first sieve of a top-k."""
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
    device: torch.device | None = None,
) -> Tensor:
    """Classes (M,) by the weighted vote of the k nearest training rows (Wu et al. 2018,
    arXiv:1805.01978), on the device of `train_labels`.

    Rows are L2-normalised; each of the k neighbours with the highest cosine similarity votes for
    its class with weight exp((similarity - highest similarity) / temperature). Ties between
    neighbours and between classes go to the lower index. A k above N counts every row.

    device: where to compute (default: where `train` is). Beside its inputs it holds blocks of
    training rows (1 GiB at most, twice: raw and normalised), of similarities (64 MiB, about
    three times), and the k best neighbours of every query; it makes no copy of the bank."""
    device = device or train.device
    k = min(k, len(train))
    similarity, neighbours = nearest_rows(train, queries, k=k, device=device)
    rows = max(1, _BLOCK_ELEMENTS // max(k, num_classes))
    labels = train_labels.to(device)
    votes = (
        _votes(values, labels[nearest], num_classes, temperature).argmax(dim=1)
        for values, nearest in zip(
            torch.split(similarity, rows), torch.split(neighbours, rows), strict=True
        )
    )
    return torch.cat(list(votes)).to(train_labels.device)


def nearest_rows(
    train: Tensor, queries: Tensor, *, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine similarities (M, k) and indices (M, k) of the k <= N nearest training rows of each
    query, by ascending index; of rows at the same similarity the first ones count.

    Exact for any size of the blocks: the k best so far stand before each new block, in the order
    of their indices, so that the best of both together are found with the same rule for ties."""
    bank_rows = max(k, min(_BANK_ROWS, _BANK_ELEMENTS // train.shape[1]))
    rows = max(1, _BLOCK_ELEMENTS // min(bank_rows, len(train)))
    best: list[tuple[Tensor, Tensor]] = []  # of each chunk of queries: values, indices
    for start in range(0, len(train), bank_rows):
        bank = F.normalize(train[start : start + bank_rows].to(device).float(), dim=1).T
        for chunk, queries_part in enumerate(torch.split(queries, rows)):
            part = F.normalize(queries_part.to(device).float(), dim=1)
            if start == 0:
                best.append(_highest(part @ bank, k))
                continue
            values, indices = best[chunk]
            joined, columns = _highest(torch.cat([values, part @ bank], dim=1), k)
            earlier = indices.gather(1, columns.clamp_max(k - 1))
            best[chunk] = joined, torch.where(columns < k, earlier, columns + (start - k))
    return torch.cat([values for values, _ in best]), torch.cat([rows for _, rows in best])


def _highest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values of each row (rows, n) and their columns, by ascending column; of equal
    values the first ones count."""
    n = similarity.shape[1]
    top, columns = _any_highest(similarity, min(k + 1, n))
    values, columns = top[:, :k], columns[:, :k]
    if k < n:
        tied = top[:, k - 1] == top[:, k]
        if tied.any():  # topk breaks ties as it likes
            columns = columns.clone()
            columns[tied] = _first_columns(similarity[tied], values[tied, -1:], k)
    columns = columns.sort(dim=1).values
    return similarity.gather(1, columns), columns


def _any_highest(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk`, which sorts through every value, behind a cheaper sieve: the `count` highest values
    lie in the `count` groups of columns with the highest maxima."""
    n = similarity.shape[1]
    groups = n // _GROUP
    if groups < 4 * count:
        top = similarity.topk(count, dim=1)
        return top.values, top.indices
    whole = groups * _GROUP
    maxima = similarity[:, :whole].reshape(-1, _GROUP, groups).amax(dim=1)
    first = maxima.topk(count, dim=1, sorted=False).indices
    inside = groups * torch.arange(_GROUP, device=similarity.device)
    columns = (first[:, :, None] + inside).flatten(1)
    rest = torch.arange(whole, n, device=similarity.device)
    columns = torch.cat([columns, rest.expand(len(columns), -1)], dim=1)
    top = similarity.gather(1, columns).topk(count, dim=1)
    return top.values, columns.gather(1, top.indices)


def _first_columns(similarity: Tensor, threshold: Tensor, k: int) -> Tensor:
    """(rows, k) columns of everything above the threshold (rows, 1), which is the k-th highest
    value, filled up with the first columns that equal it."""
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
