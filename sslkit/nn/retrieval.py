"""How well images of the same class are found by the similarity of their features.

Shapes: M queries, N rows of the gallery, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .classification import unit_rows

_BLOCK_ELEMENTS = 1 << 22
"""Similarities ranked at once: 16 MiB of float32, about ten times that with all that ranking them
needs."""
_GALLERY_ELEMENTS = 1 << 27
"""Features of the gallery that are normalised at once (1 GiB of float64)."""


@dataclass(frozen=True)
class RetrievalScores:
    """What was found for each query; NaN for those that do not count, whose class does not occur in
    the gallery."""

    recalls: Mapping[int, Tensor]
    """k -> (M,) float64 on the CPU: whether an image of its class is among the k nearest, 1 or 0,
    or where images tie, how probable it is."""
    precisions: Tensor
    """(M,) float64 on the CPU: average precision."""

    @property
    def queries(self) -> int:
        """Queries that count."""
        return int((~self.precisions.isnan()).sum())

    @property
    def recall(self) -> Mapping[int, float]:
        """k -> mean over the queries that count."""
        return {k: float(values.nanmean()) for k, values in self.recalls.items()}

    @property
    def mean_average_precision(self) -> float:
        """Over the queries that count."""
        return float(self.precisions.nanmean())


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
    """Ranks the whole gallery for each query by cosine similarity and scores the ranking; a row is
    relevant where it has the query's label. Rows that are equally similar are in no order: scores
    are then their expected values over all orders (McSherry and Najork 2008), so that the order of
    the gallery decides nothing.

    own: the row of each query in the gallery, where it is part of it; it is left out of the
    ranking. Average precision is the mean, over the relevant rows, of the precision at their rank
    (Manning et al. 2008, 8.4). Exact for any size; similarities are made and ranked a block of
    queries at a time. device: where to compute (default: where `gallery` is)."""
    device = device or gallery.device
    normalised = _Normalised(gallery, device)
    labels = gallery_labels.to(device)
    precisions: list[Tensor] = []
    recalls: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in torch.split(torch.arange(len(queries)), max(1, _BLOCK_ELEMENTS // len(gallery))):
        block = queries[rows.to(queries.device)]
        relevant = query_labels[rows.to(query_labels.device)].to(device)[:, None] == labels
        similarity = normalised.similarity(unit_rows(block, device))
        if own is not None:
            place = own[rows.to(own.device)].to(device)[:, None]
            similarity.scatter_(1, place, -torch.inf)  # last, and not relevant: without effect
            relevant.scatter_(1, place, False)
        ranking = _Ranking.of(similarity, relevant)
        precisions.append(ranking.average_precision().cpu().double())
        for k, found in recalls.items():
            found.append(ranking.recall(k).cpu().double())
    return RetrievalScores(
        {k: torch.cat(found) for k, found in recalls.items()}, torch.cat(precisions)
    )


@dataclass(frozen=True)
class _Ranking:
    """The gallery in the order of its similarity to each query, (m, N), and the groups of rows that
    are equally similar: most rows are one alone."""

    relevant: Tensor
    """Whether the row at each rank is relevant; int64."""
    start: Tensor
    """The rank, from 0, at which the group of each begins."""
    size: Tensor
    """Rows in the group of each."""
    inside: Tensor
    """Relevant ones among them."""

    @classmethod
    def of(cls, similarity: Tensor, relevant: Tensor) -> _Ranking:
        ranked, order = similarity.sort(dim=1, descending=True)
        found = relevant.gather(1, order).long()
        ranks = torch.arange(ranked.shape[1], device=ranked.device).expand_as(ranked)
        new = torch.ones_like(found, dtype=torch.bool)
        new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        if new.all():
            return cls(found, ranks, torch.ones_like(found), found)
        group = new.cumsum(dim=1) - 1
        start = torch.where(new, ranks, 0).cummax(dim=1).values
        ones = torch.ones_like(found)
        size = torch.zeros_like(found).scatter_add_(1, group, ones).gather(1, group)
        inside = torch.zeros_like(found).scatter_add_(1, group, found).gather(1, group)
        return cls(found, start, size, inside)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.relevant.device.type == "mps" else torch.float64

    def average_precision(self) -> Tensor:
        """(m,) its expected value; NaN without a relevant row."""
        total = self.relevant.sum(dim=1)
        ranks = torch.arange(self.relevant.shape[1], device=total.device)
        earlier = self.relevant.cumsum(dim=1) - self.relevant  # of earlier groups, at their start
        before = earlier.gather(1, self.start).to(self._dtype)
        others = (self.inside - 1).to(self._dtype) / (self.size - 1).clamp_min(1)
        expected = before + (ranks - self.start) * others + 1.0  # relevant rows up to this rank
        chance = self.inside.to(self._dtype) / self.size  # that the row at this rank is relevant
        return (chance * expected / (ranks + 1)).sum(dim=1) / total

    def recall(self, k: int) -> Tensor:
        """(m,) the probability that a relevant row is among the first k; NaN without any."""
        first = self.relevant.argmax(dim=1, keepdim=True)  # lies in the first group that has one
        start, size, inside = (
            part.gather(1, first)[:, 0] for part in (self.start, self.size, self.inside)
        )
        room = (k - start).clamp_min(0).minimum(size).to(self._dtype)
        others = (size - inside).to(self._dtype)
        none = _log_choose(others, room) - _log_choose(size.to(self._dtype), room)
        missed = torch.where(room <= others, none.exp(), 0.0)
        return torch.where(self.relevant.any(dim=1), 1.0 - missed, torch.nan)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """The logarithm of the number of ways to choose k of n; of no meaning where k is above n."""
    rest = (n - k).clamp_min(0.0)
    return torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(rest + 1.0)


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
            yield unit_rows(part, self._device)

    def similarity(self, queries: Tensor) -> Tensor:
        """(m, N) cosine similarities, float32; queries: (m, F) unit rows."""
        parts = self._made() if self._kept is None else self._kept
        return torch.cat([(queries @ part.T).float() for part in parts], dim=1)
