"""Linear classifiers on one data set for many penalties, searched for side by side.

Shapes: P problems, A of them that are evaluated, N rows, F feature width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .lbfgs import minimize
from .logistic_regression import BLOCK_ELEMENTS, LinearClassifiers

_GRAM_ROWS = 1 << 13
"""Rows that the preconditioner is made from; four per feature where that is more."""
_CONVEXITY = 0.01
"""What stronger penalties count as where a search asks how far it is from its minimum."""
_FLAT = 1e-12
"""Part of the largest curvature below which an axis is flat: a millionth of the largest spread,
which is about what float32 rounds to."""
_LEAST_SHRINKAGE = 1e-9
"""Shrinkage of the Hessian from where every class is equally likely, as the
preconditioner sees it."""

Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Each call starts again: (n, F) float32 features and (n,) int64 labels, on the device where the
classifiers are computed."""


@dataclass(frozen=True)
class LabelledRows:
    """The rows that classifiers are fitted to, in blocks."""

    blocks: Blocks
    num_rows: int
    """Rows that the blocks hold together."""
    num_classes: int


@dataclass(frozen=True)
class Curvature:
    """Axes of the Hessian of a linear classifier, by the weights of one class: those of the
    uncentred covariance of the features."""

    values: Tensor  # (F,)
    """The Hessian along each axis where every class is equally likely: the covariance over C."""
    axes: Tensor | None  # (F, A), A = F or fewer
    """One in each column; None: the features are turned to them already, and a step then needs no
    product with these."""

    @classmethod
    def of(cls, gram: Tensor, rows: int, num_classes: int, device: torch.device) -> Curvature:
        """From the product (F, F) of the transposed features with themselves, over some rows."""
        values, axes = torch.linalg.eigh(gram.cpu() / (rows * num_classes))
        return cls(values.clamp_min(0.0).float().to(device), axes.float().to(device))

    @classmethod
    def of_few(cls, x: Tensor, num_classes: int, device: torch.device) -> Curvature:
        """From all rows (N, F), float64, no more than their features, without flat axes: what `of`
        finds in N^3 instead of F^3 operations, from the products of rows with each other."""
        values, rows = torch.linalg.eigh((x @ x.T).cpu())
        some = values > _FLAT * values[-1]
        if not some.any():  # all features are 0, along any axis
            return cls(torch.zeros(1, device=device), torch.eye(x.shape[1], 1, device=device))
        axes = x.T.cpu() @ (rows[:, some] / values[some].sqrt())
        values = values[some] / (len(x) * num_classes)
        return cls(values.float().to(device), axes.float().to(device))

    def without_flat(self) -> Curvature:
        """Without axes along which no row differs from 0, but for rounding. A penalised weight is 0
        there, so that nothing is lost: images that were enlarged, or are fewer than their features,
        have many."""
        assert self.axes is not None
        some = self.values >= _FLAT * self.values.max()
        return Curvature(self.values[some], self.axes[:, some])


def feature_curvature(rows: LabelledRows) -> Curvature:
    """The curvature from a few rows per feature: it only has to be near. From all rows, where they
    are few, and then without flat axes."""
    gram, used, device = torch.zeros(()), 0, torch.device("cpu")
    few: list[Tensor] = []
    for x, _ in rows.blocks():
        wanted = max(_GRAM_ROWS, 4 * x.shape[1])
        part, device = x[:: max(1, rows.num_rows // wanted)], x.device
        part = (part.cpu() if device.type == "mps" else part).double()  # which has no float64
        used += len(part)
        if rows.num_rows <= x.shape[1]:
            few.append(part)
        else:
            gram = gram.to(part) + part.T @ part
    if few:
        return Curvature.of_few(torch.cat(few), rows.num_classes, device)
    found = Curvature.of(gram, used, rows.num_classes, device)
    return found.without_flat() if used == rows.num_rows else found


def fit_penalties(
    rows: LabelledRows,
    *,
    l2: Sequence[float],
    start: LinearClassifiers | None = None,
    curvature: Curvature | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-3,
) -> LinearClassifiers:
    """One classifier for each penalty in `l2`, all on the same features: minimises what
    `fit_logistic_regression` minimises, each problem with a search of its own, and one pass over
    the data serves all of them.

    start: P = len(l2) classifiers, default zero.
    curvature: of these features or of others like them; default: found here. tolerance: by which
    part of it the loss, penalty included, may exceed its minimum. Features should be standardised.
    Memory beside the blocks: logits (64 MiB, about three times), 25 times the parameters of P
    classifiers, and two matrices (F, F)."""
    return search_penalties(
        curvature or feature_curvature(rows),
        rows.num_classes,
        partial(_shared_gradient, rows),
        l2=l2,
        start=start,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )


class LossGradient(NamedTuple):
    """Loss and gradient of A classifiers on all rows."""

    losses: Tensor  # (A,) float64, on the CPU
    """Mean cross entropies."""
    doubts: Tensor  # (A,)
    """Mean of 1 - the sum of the squared probabilities of the classes: 1 - 1 / C where all are
    equally likely, 0 where all rows are certain. The Hessian shrinks with it."""
    by_weight: Tensor  # (A, C, F), may be written to
    by_bias: Tensor  # (A, C)


Gradient = Callable[[Tensor, Tensor], LossGradient]
"""From the weight (A, C, F) and the bias (A, C) of A classifiers."""


def search_penalties(
    curvature: Curvature,
    num_classes: int,
    gradient: Gradient,
    *,
    l2: Sequence[float],
    start: LinearClassifiers | None,
    max_iterations: int,
    tolerance: float,
) -> LinearClassifiers:
    """Minimises a convex loss of linear classifiers + l2 / 2 * the squared norm of the weights,
    once for each penalty: P searches by L-BFGS (`minimize`), side by side.

    The searches are preconditioned by the Hessian that a classifier would have if every row were in
    as much doubt as the mean row is: with weak penalties most rows become certain, and the Hessian
    at the start, many times too large, then takes hundreds of passes to correct. A search ends
    where the squared gradient is at most 2 * l2 * tolerance * value: by the strong convexity of the
    penalty the value is then above its minimum by the tolerance at most. Strong penalties, for
    which this is soon true, count as 0.01. start: default zero."""
    search = _Search(curvature, num_classes, gradient, l2, tolerance)
    if start is None:
        points = curvature.values.new_zeros(len(l2), search.size + num_classes)
    else:
        points = torch.cat([start.weight.flatten(1), start.bias], dim=1)
    minima = minimize(
        search.objective, points, search.precondition, search.solved, max_iterations=max_iterations
    )
    weight, bias = search.unpack(minima.points)
    return LinearClassifiers(weight, bias, minima.passes, all(minima.found))


class _Search:
    """What `minimize` asks of P penalised problems; a point holds weights, then biases."""

    def __init__(
        self,
        curvature: Curvature,
        num_classes: int,
        gradient: Gradient,
        l2: Sequence[float],
        tolerance: float,
    ) -> None:
        self._curvature = curvature
        self._num_classes = num_classes
        self._gradient = gradient
        self._l2 = l2
        self._tolerance = tolerance
        self._shrinkage = [1.0] * len(l2)
        self._width = len(curvature.values if curvature.axes is None else curvature.axes)
        self.size = self._width * num_classes
        """How many of a point's numbers are weights."""

    def unpack(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (A, C, F) and biases (A, C) of A points."""
        weight = points[:, : self.size].view(len(points), self._num_classes, self._width)
        return weight, points[:, self.size :]

    def objective(self, problems: Sequence[int], points: Tensor) -> tuple[list[float], Tensor]:
        """See `lbfgs.Objective`."""
        weight, bias = self.unpack(points)
        strengths = points.new_tensor([self._l2[problem] for problem in problems])
        found = self._gradient(weight, bias)
        for problem, doubt in zip(problems, found.doubts.tolist(), strict=True):
            shrinkage = doubt / (1.0 - 1.0 / self._num_classes)
            self._shrinkage[problem] = max(shrinkage, _LEAST_SHRINKAGE)
        by_weight = found.by_weight + strengths[:, None, None] * weight
        penalties = 0.5 * (strengths * weight.square().sum(dim=(1, 2))).cpu().double()
        values: list[float] = (found.losses + penalties).tolist()
        return values, torch.cat([by_weight.flatten(1), found.by_bias], dim=1)

    def precondition(self, problem: int, vector: Tensor) -> Tensor:
        """See `lbfgs.Precondition`."""
        shrinkage, axes = self._shrinkage[problem], self._curvature.axes
        by_weight = vector[: self.size].view(self._num_classes, self._width)
        scale = shrinkage * self._curvature.values + self._l2[problem]
        by_weight = by_weight / scale if axes is None else (by_weight @ axes / scale) @ axes.T
        by_bias = self._num_classes / shrinkage * vector[self.size :]
        return torch.cat([by_weight.flatten(), by_bias])

    def solved(self, problem: int, value: float, gradient: Tensor) -> bool:
        """See `lbfgs.Solved`."""
        convexity = min(self._l2[problem], _CONVEXITY)
        return float(gradient.square().sum()) <= 2.0 * convexity * self._tolerance * value


def _shared_gradient(data: LabelledRows, weight: Tensor, bias: Tensor) -> LossGradient:
    """Loss and gradient of A problems on the same rows."""
    problems, num_classes, width = weight.shape
    columns = problems * num_classes
    flat, by_weight = weight.flatten(0, 1), weight.new_zeros(columns, width)
    by_bias, doubts = torch.zeros_like(bias), bias.new_zeros(problems)
    losses = []
    rows = max(1, BLOCK_ELEMENTS // columns)
    for features, labels in data.blocks():
        for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            logits = torch.addmm(bias.flatten(), x, flat.T).view(len(x), problems, num_classes)
            log_p = F.log_softmax(logits, dim=2)
            target = y[:, None, None].expand(-1, problems, 1)
            losses.append(-log_p.gather(2, target).sum(dim=(0, 2)))
            residual = log_p.exp_()
            doubts += (1.0 - residual.square().sum(dim=2)).sum(dim=0)
            residual.scatter_add_(2, target, -torch.ones_like(residual[..., :1]))
            by_weight.addmm_(residual.flatten(1).T, x)
            by_bias += residual.sum(dim=0)
    total = torch.stack(losses).cpu().double().sum(dim=0)
    return LossGradient(
        total / data.num_rows,
        doubts / data.num_rows,
        by_weight.view_as(weight) / data.num_rows,
        by_bias / data.num_rows,
    )
