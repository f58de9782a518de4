"""Scores of segmentations, and linear classifiers of positions on a feature map.

Shapes: H x W pixels of a mask, h x w positions of a map, C classes, N positions, F feature width,
P penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .logistic_regression import LinearClassifiers
from .penalty_search import Curvature, LossGradient, search_penalties

_BLOCK_ELEMENTS = 1 << 24
"""Logits held at once; the rows of a block follow from the shapes."""

# --- Scores ---------------------------------------------------------------------------------------


def pixel_confusion(target: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64: pixels of class i (row) that were given class j (column).

    target: class indices of any shape and integer type; values from `num_classes` on are ignored.
    predicted: class indices of the same shape, all below `num_classes`."""
    target, predicted = target.flatten().long(), predicted.flatten().long()
    known = (target >= 0) & (target < num_classes)
    pairs = target[known] * num_classes + predicted[known]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def class_counts(confusion: Tensor) -> Tensor:
    """(3, C) float64: of each class the pixels that are right, those that are of it, and those that
    were given it. All scores follow from these counts, summed over images."""
    table = confusion.double()
    return torch.stack([table.diagonal(), table.sum(dim=1), table.sum(dim=0)])


def scores_of_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(...) mean intersection over union and (...) pixel accuracy from `class_counts`
    (..., 3, C)."""
    right, target, predicted = counts.unbind(-2)
    ratios = right / (target + predicted - right)
    return ratios.nanmean(dim=-1), right.sum(dim=-1) / target.sum(dim=-1)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """(C,) float64, the Jaccard index of every class over all pixels together (Everingham et al.
    2010, PASCAL VOC); NaN for a class that neither occurs nor was predicted."""
    table = confusion.double()
    hits = table.diagonal()
    return hits / (table.sum(dim=0) + table.sum(dim=1) - hits)


def mean_intersection_over_union(confusion: Tensor) -> float:
    """The mean over the classes that occur or were predicted; NaN where there are none."""
    return float(intersection_over_union(confusion).nanmean())


def pixel_accuracy(confusion: Tensor) -> float:
    """The part of the pixels that have the right class; NaN where there are none."""
    table = confusion.double()
    return float(table.diagonal().sum() / table.sum())


# --- Linear classifiers of positions --------------------------------------------------------------


def class_fractions(mask: Tensor, size: tuple[int, int], num_classes: int) -> Tensor:
    """(h * w, C) float32: the part of each position's pixels that has each class. Pixels from
    `num_classes` on are ignored and belong to none, so that a row sums to the part that is known.

    mask: (H, W) class indices. size: (h, w)."""
    classes = torch.arange(num_classes, device=mask.device).view(-1, 1, 1)
    one_hot = (mask == classes).float()
    return F.adaptive_avg_pool2d(one_hot, size).flatten(1).T.contiguous()


def soft_confusion(fractions: Tensor, predicted: Tensor) -> Tensor:
    """(C, C) float64 as `pixel_confusion`, from the `class_fractions` (N, C) of positions and the
    classes (N,) that they were given as a whole."""
    num_classes = fractions.shape[1]
    table = fractions.new_zeros(num_classes, num_classes, dtype=torch.float64)
    return table.index_add_(0, predicted, fractions.double()).T.contiguous()


Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Each call starts again: (n, F) float32 features and (n, C) float32 class fractions, on the device
where the classifiers are computed."""


def fit_class_fractions(
    blocks: Blocks,
    *,
    l2: Sequence[float],
    start: LinearClassifiers | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-3,
) -> LinearClassifiers:
    """One classifier for each penalty in `l2`: minimises the cross entropy between a position's
    class fractions and its prediction, averaged over the known pixels, + l2 / 2 * the squared norm
    of the weights. It is the cross entropy of the pixels where all pixels of a position have its
    logits: the loss of a 1x1 convolution. Convex, full-batch L-BFGS, nothing random.

    Features should be standardised: the search is preconditioned with their covariance. start:
    P = len(l2) classifiers, default zero. tolerance: as for `fit_penalties`."""
    curvature, num_classes, known = _prepared(blocks)
    return search_penalties(
        curvature,
        num_classes,
        lambda weight, bias: _gradient(blocks, weight, bias, known),
        l2=l2,
        start=start,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )


def _prepared(blocks: Blocks) -> tuple[Curvature, int, float]:
    """The curvature of the features; the number of classes; the positions, counted by their known
    part."""
    gram, rows, known, num_classes = torch.zeros(()), 0, 0.0, 0
    device = torch.device("cpu")
    for x, fractions in blocks():
        device = x.device
        gram = gram.to(x) + x.T @ x
        rows, known, num_classes = rows + len(x), known + float(fractions.sum()), fractions.shape[1]
    if not known > 0.0:
        raise ValueError("no position has a pixel of a known class")
    return Curvature.of(gram, rows, num_classes, device), num_classes, known


def _gradient(blocks: Blocks, weight: Tensor, bias: Tensor, known: float) -> LossGradient:
    """Loss and gradient of A problems on the same positions."""
    problems, num_classes, width = weight.shape
    columns = problems * num_classes
    flat, by_weight = weight.flatten(0, 1), weight.new_zeros(columns, width)
    by_bias, doubts = torch.zeros_like(bias), bias.new_zeros(problems)
    losses = []
    rows = max(1, _BLOCK_ELEMENTS // columns)
    for features, fractions in blocks():
        for x, t in zip(torch.split(features, rows), torch.split(fractions, rows), strict=True):
            logits = torch.addmm(bias.flatten(), x, flat.T).view(len(x), problems, num_classes)
            log_p = F.log_softmax(logits, dim=2)
            target = t[:, None, :]
            losses.append(-(target * log_p).sum(dim=(0, 2)))
            parts, known_part = log_p.exp_(), target.sum(dim=2, keepdim=True)
            doubts += ((1.0 - parts.square().sum(dim=2, keepdim=True)) * known_part).sum(dim=(0, 2))
            residual = parts * known_part - target
            by_weight.addmm_(residual.flatten(1).T, x)
            by_bias += residual.sum(dim=0)
    total = torch.stack(losses).cpu().double().sum(dim=0)
    return LossGradient(
        total / known, doubts / known, by_weight.view_as(weight) / known, by_bias / known
    )
