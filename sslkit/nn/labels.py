"""Choosing some of the labelled images of each class.

Shapes: N images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.randomness import SampleRandom


def random_order(random: SampleRandom) -> Tensor:
    """(N,) int64: a permutation of 0..N-1 that depends on the keys of `random` alone."""
    words = random.bits("order", 2)
    # 63 bits: ties, which a stable sort would break towards low indices, do not happen in practice.
    return ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)


def grouped_by_class(labels: Tensor, order: Tensor) -> Tensor:
    """(N,) positions of all images, class by class, each class in the given order. labels: (N,)
    int64, not negative; order: (N,), a permutation of the positions."""
    return order[labels[order].argsort(stable=True)]


def ranks_in_class(labels: Tensor, order: Tensor) -> Tensor:
    """(N,) int64: how many images of its class come before each in the given order."""
    grouped = grouped_by_class(labels, order)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[grouped] = torch.arange(len(labels)) - starts[labels[grouped]]
    return ranks


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of (the rest, the held-out part), each ascending. labels: (N,) int64 on the CPU.

    Of each class, `fraction` rounded is held out, at least one image where the class has two, and
    never all. Which ones depends on the seed and the images' indices only."""
    counts = labels.bincount()
    held = (counts * fraction).round().long().clamp_min(1).minimum(counts - 1).clamp_min(0)
    order = random_order(SampleRandom(seed, "linear", 0, torch.arange(len(labels))))
    is_held = ranks_in_class(labels, order) < held[labels]
    return (~is_held).nonzero().squeeze(1), is_held.nonzero().squeeze(1)


def balanced_subset(labels: Tensor, total: int, seed: int, draw: int) -> Tensor:
    """Ascending indices of `total` images with as many of each class as of any other, or one more:
    which classes have one more, and which images are taken, depends on the seed, the draw and the
    images' indices only. labels: (N,) int64 on the CPU.

    Round after round every class that has images left gives one, so a draw's smaller subsets are
    part of its larger ones, and a class that runs out is made up for by the others."""
    counts = labels.bincount()
    indices = torch.arange(len(labels))
    ranks = ranks_in_class(labels, random_order(SampleRandom(seed, "subset", draw, indices)))
    turns = random_order(SampleRandom(seed, "subset_classes", draw, torch.arange(len(counts))))
    turn_of_class = turns.argsort()
    place = ranks * len(counts) + turn_of_class[labels]
    return place.argsort(stable=True)[:total].sort().values
