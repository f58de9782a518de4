"""Classifiers on fixed features, and how their predictions are scored.

Shapes: N training rows, M query rows, F feature width, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.deprecation import removed_names

_BLOCK_ELEMENTS = 1 << 24
"""Similarities held at once (64 MiB of float32)."""
_BANK_ROWS = 1 << 16
"""Training rows compared at once; each block of them is moved to the device once."""
_BANK_ELEMENTS = 1 << 28
"""Feature values of such a block, at most (1 GiB of float32)."""
_GROUP = 16
"""Columns that are represented by their maximum in the first sieve of a top-k."""
_NEAR = 2e-6
"""Similarities that rounding to float32 may have put into another order."""
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


@dataclass(frozen=True)
class Vote:
    """How neighbours vote for a class."""

    k: int
    """How many vote."""
    temperature: float
    num_classes: int

    def weights(self, similarity: Tensor, highest: Tensor) -> Tensor:
        """int64 weights of neighbours; `highest` is the similarity of the nearest one."""
        return self.exact_weights(similarity, highest).round().long()

    def exact_weights(self, similarity: Tensor, highest: Tensor) -> Tensor:
        """The weights before they are rounded to whole numbers."""
        return ((similarity - highest) / self.temperature).exp() * _VOTE_SCALE


def knn_correct(
    train: Tensor,  # (N, F)
    train_labels: Tensor,  # (N,) int64
    queries: Tensor,  # (M, F)
    query_labels: Tensor,  # (M,) int64
    vote: Vote,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """The probability (M,) float64, on the CPU, that each query gets its class by the weighted vote
    of the k nearest training rows (Wu et al. 2018, arXiv:1805.01978): 1 or 0, but for ties.

    Rows are L2-normalised; each of the k neighbours with the highest cosine similarity votes for
    its class with weight exp((similarity - highest similarity) / temperature). Rows that are
    equally similar share the places that are left for them, and t classes with equal votes are
    right once in t times: the order of the rows and the numbers of the classes decide nothing. A k
    above N counts every row.

    device: where to compute (default: where `train` is). Beside its inputs it holds blocks of
    training rows (1 GiB at most, twice: raw and normalised), of similarities (64 MiB, about
    three times), and the k best neighbours of every query; it makes no copy of the bank."""
    device = device or train.device
    asked_for = min(vote.k + 1, len(train))
    similarity, neighbours = nearest_rows(train, queries, k=asked_for, device=device)
    labels = train_labels.to(device)
    rows = max(1, _BLOCK_ELEMENTS // max(vote.k, vote.num_classes))
    found = []
    for part, (values, nearest) in enumerate(
        zip(torch.split(similarity, rows), torch.split(neighbours, rows), strict=True)
    ):
        asked = query_labels[part * rows : part * rows + len(values)].to(device)
        weights, unsure = _weights(values, vote)
        votes = torch.zeros(len(values), vote.num_classes, dtype=torch.int64, device=device)
        votes.scatter_add_(1, labels[nearest], weights)
        (unsure_rows,) = unsure.nonzero(as_tuple=True)
        if len(unsure_rows):
            tied = queries[(unsure_rows + part * rows).to(queries.device)]
            votes[unsure_rows] = _votes_with_ties(train, labels, tied, vote)
        found.append(_probability(votes, asked))
    return torch.cat(found).cpu().double()


def _weights(similarity: Tensor, vote: Vote) -> tuple[Tensor, Tensor]:
    """int64 weights of k + 1 neighbours (rows, k + 1), or of all where there are fewer, that of the
    last one 0; and for which rows the last two are so near that rounding may have ordered them."""
    highest, lowest = similarity.max(dim=1, keepdim=True).values, similarity.argmin(dim=1)
    weights = vote.weights(similarity, highest)
    if similarity.shape[1] <= vote.k:
        return weights, torch.zeros_like(lowest, dtype=torch.bool)
    weights.scatter_(1, lowest[:, None], 0)
    last_two = similarity.topk(2, dim=1, largest=False).values
    return weights, last_two[:, 1] - last_two[:, 0] <= _NEAR


def _votes_with_ties(
    train: Tensor,
    labels: Tensor,  # (N,) on the device
    queries: Tensor,  # (m, F)
    vote: Vote,
) -> Tensor:
    """(m, C) int64 votes where rows that are equally similar share the last of the k places.
    Similarities are float64, rounded to float32: equal rows are equally similar wherever they
    stand. k < N."""
    device = labels.device
    width = max(1, min(_BANK_ROWS, _BANK_ELEMENTS // (2 * train.shape[1])))
    chunk = max(1, _BLOCK_ELEMENTS // (2 * width))

    def pairs() -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number of a chunk of queries, its similarities to a block of rows, labels of those."""
        for start in range(0, len(train), width):
            bank = unit_rows(train[start : start + width], device)
            for number, part in enumerate(torch.split(queries, chunk)):
                similarity = (unit_rows(part, device) @ bank.T).float()
                yield number, similarity, labels[start : start + width]

    sizes = [len(part) for part in torch.split(queries, chunk)]
    best = [torch.empty(size, 0, device=device) for size in sizes]
    for number, similarity, _ in pairs():
        joined = torch.cat([best[number], similarity], dim=1)
        best[number] = joined.topk(min(vote.k, joined.shape[1]), dim=1).values
    above = [
        torch.zeros(size, vote.num_classes, dtype=torch.int64, device=device) for size in sizes
    ]
    level = [torch.zeros_like(part) for part in above]
    for number, similarity, classes in pairs():
        highest, last = best[number][:, :1], best[number][:, -1:]
        weights = vote.weights(similarity, highest)
        index = classes.expand(len(similarity), -1)
        above[number].scatter_add_(1, index, torch.where(similarity > last, weights, 0))
        level[number].scatter_add_(1, index, (similarity == last).long())
    votes = []
    for values, votes_above, at_level in zip(best, above, level, strict=True):
        highest, last = values[:, :1], values[:, -1:]
        room = (values == last).sum(dim=1, keepdim=True)
        share = room / at_level.sum(dim=1, keepdim=True)
        weight = vote.exact_weights(last, highest)
        votes.append(votes_above + (weight * share * at_level).round().long())
    return torch.cat(votes)


def _probability(votes: Tensor, labels: Tensor) -> Tensor:
    """(rows,) 1 over the number of classes with the most votes where the label is one of them."""
    first = votes == votes.max(dim=1, keepdim=True).values
    return first.gather(1, labels[:, None])[:, 0].float() / first.sum(dim=1)


def unit_rows(rows: Tensor, device: torch.device) -> Tensor:
    """L2-normalised rows on the device, in float64 where it has that. Their products, rounded to
    float32, are equal for equal rows: in float32 they depend on where in a block a row stands."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return F.normalize(rows.to(device, dtype), dim=1)


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


__getattr__ = removed_names(
    "sslkit.nn.classification", {"knn_predict": "knn_correct gives how far each query is right"}
)
