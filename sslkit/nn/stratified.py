"""Choosing some of the labelled images of each class.

Shapes: N images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.deprecation import removed_names
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


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """(N,) int64: which of the parts 0 to folds - 1 each image belongs to, -1 for the only image of
    its class. labels: (N,) int64 on the CPU, not negative; folds: at least 2.

    Each class is spread over the parts evenly, and the parts are of one size, each to within one
    image. Every class with two images keeps one outside any part. Where an image belongs depends on
    the seed, the labels and the images' indices only."""
    order = random_order(SampleRandom(seed, "linear", 0, torch.arange(len(labels))))
    single = labels.bincount()[labels] == 1
    grouped = grouped_by_class(labels, order)
    grouped = grouped[~single[grouped]]
    found = torch.full_like(labels, -1)
    found[grouped] = torch.arange(len(grouped)) % folds
    return found


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


__getattr__ = removed_names(
    "sslkit.nn.labels", {"stratified_split": "stratified_folds divides by class"}
)
