"""How well images of the same class are found by the similarity of their features.

Shapes: M queries, N rows of the gallery, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22
"""Similarities ranked at once: 16 MiB of float32, about ten times that with all that ranking them
needs."""
_GALLERY_ELEMENTS = 1 << 28
"""Features of the gallery that are normalised at once (1 GiB of float32)."""


@dataclass(frozen=True)
class RetrievalScores:
    """What was found."""

    recall: Mapping[int, float]
    """k -> part of the queries with an image of their class among the k nearest."""
    mean_average_precision: float
    queries: int
    """Queries that count: those whose class occurs in the gallery."""


@torch.no_grad()
def score_retrieval(
    queries: Tensor,  # (M, F)
    query_labels: Tensor,  # (M,) int64
    gallery: Tensor,  # (N, F)
    gallery_labels: Tensor,  # (N,) int64
    *,
    ks: Sequence[int],
    own: Tensor | None = None,  # (M,) int64
    device: torch.device | None = None,
) -> RetrievalScores:
    """Ranks the whole gallery for each query by cosine similarity, equal ones by index, and scores
    the ranking; a row is relevant where it has the query's label.

    own: the row of each query in the gallery, where it is part of it; it is left out of the
    ranking. Average precision is the mean, over the relevant rows, of the precision at their rank
    (Manning et al. 2008, 8.4). Queries without a relevant row count for nothing; without any other,
    the scores are NaN. Exact for any size; similarities are made and ranked a block of queries at a
    time. device: where to compute (default: where `gallery` is)."""
    device = device or gallery.device
    normalised = _Normalised(gallery, device)
    labels = gallery_labels.to(device)
    ranks = torch.arange(1, len(gallery) + 1, device=device)
    precision_dtype = torch.float32 if device.type == "mps" else torch.float64
    hits = dict.fromkeys(ks, 0)
    precision, counted = 0.0, 0
    for rows in torch.split(torch.arange(len(queries)), max(1, _BLOCK_ELEMENTS // len(gallery))):
        block = queries[rows.to(queries.device)].to(device).float()
        relevant = query_labels[rows.to(query_labels.device)].to(device)[:, None] == labels
        similarity = normalised.similarity(F.normalize(block, dim=1))
        if own is not None:
            place = own[rows.to(own.device)].to(device)[:, None]
            similarity.scatter_(1, place, -torch.inf)  # last, and not relevant: without effect
            relevant.scatter_(1, place, False)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        found = relevant.gather(1, order)
        found = found[found.any(dim=1)]
        counted += len(found)
        for k in hits:
            hits[k] += int(found[:, :k].any(dim=1).sum())
        at_rank = found.cumsum(dim=1).to(precision_dtype) / ranks
        precision += float(((at_rank * found).sum(dim=1) / found.sum(dim=1)).sum())
    if not counted:
        return RetrievalScores(dict.fromkeys(ks, float("nan")), float("nan"), 0)
    recall = {k: number / counted for k, number in hits.items()}
    return RetrievalScores(recall, precision / counted, counted)


class _Normalised:
    """Unit rows of the gallery: kept where they fit into one block, else made for every block of
    queries anew."""

    def __init__(self, gallery: Tensor, device: torch.device) -> None:
        self._gallery = gallery
        self._device = device
        self._rows = max(1, _GALLERY_ELEMENTS // gallery.shape[1])
        self._kept = list(self._made()) if len(gallery) <= self._rows else None

    def _made(self) -> Iterator[Tensor]:
        for part in torch.split(self._gallery, self._rows):
            yield F.normalize(part.to(self._device).float(), dim=1)

    def similarity(self, queries: Tensor) -> Tensor:
        """(m, N) cosine similarities; queries: (m, F) unit rows."""
        parts = self._made() if self._kept is None else self._kept
        return torch.cat([queries @ part.T for part in parts], dim=1)
