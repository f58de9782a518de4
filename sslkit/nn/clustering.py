"""k-means, and how well clusters agree with labels.

Shapes: N rows, F feature width, k clusters, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24
"""Distances held at once (64 MiB of float32)."""


@dataclass(frozen=True)
class Clusters:
    """What k-means came to."""

    centres: Tensor  # (k, F)
    inertia: float
    """Sum of the squared distances of the rows to their centres."""
    iterations: int


@torch.no_grad()
def kmeans(features: Tensor, draws: Tensor, *, max_iterations: int = 100) -> Clusters:
    """Lloyd's algorithm from k-means++ starts, until no row changes its cluster.

    features: (N, F). draws: (k,) float64 in [0, 1) on the CPU, one for each start: all the
    randomness there is, so equal draws give equal clusters. A cluster that loses its last row goes
    on from the row that is farthest from its centre. Beside the features it holds 64 MiB of
    distances and two vectors of N. Raises ValueError unless 1 <= k <= N.
    Sources: Lloyd 1982; Arthur and Vassilvitskii 2007 (k-means++).
    """
    if not 1 <= len(draws) <= len(features):
        raise ValueError(f"{len(draws)} clusters cannot be made of {len(features)} rows")
    centres = _starts(features, draws)
    clusters, distances = nearest_centres(features, centres)
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        centres = _means(features, clusters, distances, len(draws))
        before = clusters
        clusters, distances = nearest_centres(features, centres)
        if torch.equal(clusters, before):
            break
    return Clusters(centres, float(_double(distances).sum()), iteration)


@torch.no_grad()
def nearest_centres(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre (N,) int64 of each row, and the squared distance (N,) to it."""
    rows = max(1, _BLOCK_ELEMENTS // len(centres))
    lengths = centres.square().sum(dim=1)
    found = []
    for part in torch.split(features, rows):
        # |x|^2 is the same for all centres of a row and is added where it matters.
        closest = torch.addmm(lengths, part, centres.T, alpha=-2.0).min(dim=1)
        distances = (closest.values + part.square().sum(dim=1)).clamp_min_(0.0)
        found.append((closest.indices, distances))
    return torch.cat([part for part, _ in found]), torch.cat([part for _, part in found])


def _starts(features: Tensor, draws: Tensor) -> Tensor:
    """k-means++: each start is a row, drawn with a probability in proportion to its squared
    distance from the starts before it."""
    last = len(features) - 1
    chosen = [int(draws[0] * len(features))]
    distances = torch.full((len(features),), torch.inf, device=features.device)
    for draw in draws[1:]:
        newest = features[chosen[-1]][None]
        distances = torch.minimum(distances, nearest_centres(features, newest)[1])
        # On the CPU: cumulative sums on a GPU depend on the order in which its threads run.
        cumulative = distances.cpu().double().cumsum(dim=0)
        target = draw * cumulative[-1]
        if cumulative[-1] > 0.0:
            chosen.append(min(int(torch.searchsorted(cumulative, target, right=True)), last))
        else:  # every row equals a start
            chosen.append(int(draw * len(features)))
    return features[chosen]


def _means(features: Tensor, clusters: Tensor, distances: Tensor, k: int) -> Tensor:
    """(k, F) means of the rows of each cluster. Sums are products of matrices, which have the same
    bits every time on a GPU, unlike scattered additions."""
    sums = _double(features.new_zeros(k, features.shape[1]))
    numbers = torch.arange(k, device=features.device)
    rows = max(1, _BLOCK_ELEMENTS // k)
    parts = torch.split(features, rows), torch.split(clusters, rows)
    for part, numbered in zip(*parts, strict=True):
        member = (numbered == numbers[:, None]).to(part.dtype)
        sums += member @ part
    counts = clusters.bincount(minlength=k)
    centres = (sums / counts.clamp_min(1)[:, None]).to(features.dtype)
    empty = (counts == 0).nonzero().flatten()
    if len(empty):
        centres[empty] = features[distances.topk(len(empty)).indices]
    return centres


def _double(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()  # MPS has no float64


# --- Agreement with labels ------------------------------------------------------------------------


def contingency(labels: Tensor, clusters: Tensor, num_classes: int, k: int) -> Tensor:
    """(C, k) int64 on the CPU: how many rows of each class lie in each cluster."""
    pairs = labels.cpu() * k + clusters.cpu()
    return pairs.bincount(minlength=num_classes * k).view(num_classes, k)


def normalized_mutual_information(table: Tensor) -> float:
    """Mutual information over the mean of both entropies: 1 where clusters are the classes, 0 where
    they say nothing about them; 1 where there is one class and one cluster. table: `contingency`.
    """
    joint = table.double() / table.sum()
    rows, columns = joint.sum(dim=1), joint.sum(dim=0)
    entropies = [-torch.special.xlogy(part, part).sum() for part in (rows, columns)]
    product = rows[:, None] * columns
    mutual = (torch.special.xlogy(joint, joint) - torch.special.xlogy(joint, product)).sum()
    mean = float(entropies[0] + entropies[1]) / 2.0
    return max(float(mutual), 0.0) / mean if mean > 0.0 else 1.0


def adjusted_rand_index(table: Tensor) -> float:
    """The part of the pairs of rows on which clusters and classes agree, corrected for chance: 1
    where they are the same, about 0 for random clusters, and it can be negative. table:
    `contingency`. Source: Hubert and Arabie 1985."""

    def pairs(counts: Tensor) -> int:
        return int((counts * (counts - 1) // 2).sum())

    together = pairs(table)
    of_classes, of_clusters = pairs(table.sum(dim=1)), pairs(table.sum(dim=0))
    every = pairs(table.sum())
    expected = of_classes * of_clusters / every if every else 0.0
    highest = (of_classes + of_clusters) / 2.0
    return (together - expected) / (highest - expected) if highest != expected else 1.0


def matched_classes(table: Tensor) -> Tensor:
    """(k,) int64: the class that each cluster stands for, no two for the same, such that most rows
    are right (Hungarian method); -1 for a cluster that is left over. table: `contingency`."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    classes, clusters = linear_sum_assignment(table.numpy(), maximize=True)
    found = torch.full((table.shape[1],), -1)
    found[torch.from_numpy(clusters)] = torch.from_numpy(classes)
    return found


def matched_accuracy(table: Tensor) -> float:
    """Accuracy where each cluster stands for its `matched_classes`. table: not empty."""
    matched = matched_classes(table)
    clusters = (matched >= 0).nonzero()[:, 0]
    return int(table[matched[clusters], clusters].sum()) / int(table.sum())
