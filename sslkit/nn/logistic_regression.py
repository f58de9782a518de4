"""Multinomial logistic regression on fixed features, many problems at once.

Shapes: P problems, N rows of each, F feature width, C classes, M query rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.deprecation import removed_names

from .lbfgs import minimize

_BLOCK_ELEMENTS = 1 << 24
"""Logits held at once; the rows of a block follow from the shapes."""
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


@dataclass(frozen=True)
class LinearClassifiers:
    """P linear classifiers: logits are x @ weight.T + bias."""

    weight: Tensor  # (P, C, F)
    bias: Tensor  # (P, C)
    iterations: int = 0
    converged: bool = True
    """Whether every fit ended at its optimum, and none at the limit of its iterations."""

    def predict(self, problem: int, queries: Tensor) -> Tensor:
        """Classes (M,) of the queries (M, F) under one of the classifiers."""
        rows = max(1, _BLOCK_ELEMENTS // self.weight.shape[1])
        return torch.cat(
            [
                torch.addmm(self.bias[problem], part, self.weight[problem].T).argmax(dim=1)
                for part in torch.split(queries, rows)
            ]
        )

    def predict_all(self, queries: Tensor) -> Tensor:
        """Classes (P, M) of the queries under each classifier, in one product."""
        problems, num_classes, _ = self.weight.shape
        rows = max(1, _BLOCK_ELEMENTS // (problems * num_classes))
        weight, bias = self.weight.flatten(0, 1).T, self.bias.flatten()
        parts = [
            torch.addmm(bias, part, weight).view(len(part), problems, num_classes).argmax(dim=2)
            for part in torch.split(queries, rows)
        ]
        return torch.cat(parts).T

    def judge(self, queries: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which predictions of each classifier are right, (P, M) bool, and the sum of the cross
        entropies (P,), float64 on the CPU, on queries (M, F) with labels (M,)."""
        problems, num_classes, _ = self.weight.shape
        rows = max(1, _BLOCK_ELEMENTS // (problems * num_classes))
        weight, bias = self.weight.flatten(0, 1).T, self.bias.flatten()
        correct, losses = [], []
        for x, y in zip(torch.split(queries, rows), torch.split(labels, rows), strict=True):
            log_p = F.log_softmax(
                torch.addmm(bias, x, weight).view(len(x), problems, num_classes), dim=2
            )
            target = y[:, None, None].expand(-1, problems, 1)
            correct.append((log_p.argmax(dim=2) == y[:, None]).T)
            losses.append(-log_p.gather(2, target).sum(dim=(0, 2)).cpu().double())
        return torch.cat(correct, dim=1), torch.stack(losses).sum(dim=0)


def fit_logistic_regression(
    features: Tensor,  # (P, N, F)
    labels: Tensor,  # (P, N) int64
    num_classes: int,
    *,
    l2: float,
    start: LinearClassifiers | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> LinearClassifiers:
    """Minimises, for each problem, the mean cross entropy + l2 / 2 * the squared norm of the
    weights; the bias is not penalised. Full-batch L-BFGS with a strong Wolfe line search, from
    zero or from `start`, until no entry of the gradient exceeds `tolerance`. The problems share
    their line searches, so a problem's result depends on the others within the tolerance.

    Nothing in it is random. In scikit-learn's terms, C = 1 / (N * l2)."""
    problems, _, width = features.shape
    size = width * num_classes
    if start is None:
        flat = features.new_zeros(problems, size + num_classes)
    else:
        flat = torch.cat([start.weight.flatten(1), start.bias], dim=1)
    flat = flat.requires_grad_(False)
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=max_iterations,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        weight, bias = flat[:, :size].view(problems, num_classes, width), flat[:, size:]
        loss, weight_gradient, bias_gradient = cross_entropy_gradient(
            features, labels, weight, bias
        )
        flat.grad = torch.cat([(weight_gradient + l2 * weight).flatten(1), bias_gradient], dim=1)
        return loss + 0.5 * l2 * weight.square().sum()

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    weight, bias = flat[:, :size].view(problems, num_classes, width), flat[:, size:]
    return LinearClassifiers(weight, bias, int(optimizer.state[flat]["n_iter"]))


def cross_entropy_gradient(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over problems of their mean cross entropies, and its gradients by weight (P, C, F)
    and bias (P, C)."""
    problems, num_rows, _ = features.shape
    num_classes = bias.shape[1]
    loss = features.new_zeros(())
    weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
    rows = max(1, _BLOCK_ELEMENTS // (problems * num_classes))
    for x, y in zip(torch.split(features, rows, 1), torch.split(labels, rows, 1), strict=True):
        log_p = F.log_softmax(torch.baddbmm(bias[:, None], x, weight.mT), dim=2)
        loss = loss - log_p.gather(2, y[..., None]).sum()
        residual = log_p.exp_()
        residual.scatter_add_(2, y[..., None], -torch.ones_like(residual[..., :1]))
        weight_gradient.baddbmm_(residual.mT, x)  # (C, F): the other way round is 10 times slower
        bias_gradient += residual.sum(dim=1)
    return loss / num_rows, weight_gradient / num_rows, bias_gradient / num_rows


# --- One data set, many penalties -----------------------------------------------------------------

Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Each call starts again: (n, F) float32 features and (n,) int64 labels, on the device where the
classifiers are computed."""


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

    def without_flat(self) -> Curvature:
        """Without axes along which no row differs from 0, but for rounding. A penalised weight is 0
        there, so that nothing is lost: images that were enlarged, or are fewer than their features,
        have many."""
        assert self.axes is not None
        some = self.values >= _FLAT * self.values.max()
        return Curvature(self.values[some], self.axes[:, some])


def feature_curvature(blocks: Blocks, num_rows: int, num_classes: int) -> Curvature:
    """The curvature from a few rows per feature: it only has to be near. From all rows, where they
    are few, and then without flat axes."""
    gram, used, device = torch.zeros(()), 0, torch.device("cpu")
    for x, _ in blocks():
        wanted = max(_GRAM_ROWS, 4 * x.shape[1])
        part, device = x[:: max(1, num_rows // wanted)], x.device
        part = (part.cpu() if device.type == "mps" else part).double()  # which has no float64
        gram, used = gram.to(part) + part.T @ part, used + len(part)
    found = Curvature.of(gram, used, num_classes, device)
    return found.without_flat() if used == num_rows else found


def fit_penalties(
    blocks: Blocks,
    num_rows: int,
    num_classes: int,
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

    num_rows: rows that the blocks hold together. start: P = len(l2) classifiers, default zero.
    curvature: of these features or of others like them; default: found here. tolerance: by which
    part of it the loss, penalty included, may exceed its minimum. Features should be standardised.
    Memory beside the blocks: logits (64 MiB, about three times), 25 times the parameters of P
    classifiers, and two matrices (F, F)."""
    return search_penalties(
        curvature or feature_curvature(blocks, num_rows, num_classes),
        num_classes,
        lambda weight, bias: _shared_gradient(blocks, weight, bias, num_rows),
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
    width = len(curvature.values if curvature.axes is None else curvature.axes)
    size = width * num_classes
    if start is None:
        points = curvature.values.new_zeros(len(l2), size + num_classes)
    else:
        points = torch.cat([start.weight.flatten(1), start.bias], dim=1)
    shrinkage = [1.0] * len(l2)

    def objective(problems: Sequence[int], points: Tensor) -> tuple[list[float], Tensor]:
        weight = points[:, :size].view(len(problems), num_classes, width)
        strengths = points.new_tensor([l2[problem] for problem in problems])
        found = gradient(weight, points[:, size:])
        for problem, doubt in zip(problems, found.doubts.tolist(), strict=True):
            shrinkage[problem] = max(doubt / (1.0 - 1.0 / num_classes), _LEAST_SHRINKAGE)
        by_weight = found.by_weight + strengths[:, None, None] * weight
        penalties = 0.5 * (strengths * weight.square().sum(dim=(1, 2))).cpu().double()
        values: list[float] = (found.losses + penalties).tolist()
        return values, torch.cat([by_weight.flatten(1), found.by_bias], dim=1)

    def precondition(problem: int, vector: Tensor) -> Tensor:
        by_weight, axes = vector[:size].view(num_classes, width), curvature.axes
        scale = shrinkage[problem] * curvature.values + l2[problem]
        by_weight = by_weight / scale if axes is None else (by_weight @ axes / scale) @ axes.T
        return torch.cat([by_weight.flatten(), num_classes / shrinkage[problem] * vector[size:]])

    def solved(problem: int, value: float, gradient: Tensor) -> bool:
        convexity = min(l2[problem], _CONVEXITY)
        return float(gradient.square().sum()) <= 2.0 * convexity * tolerance * value

    minima = minimize(objective, points, precondition, solved, max_iterations=max_iterations)
    weight = minima.points[:, :size].view(len(l2), num_classes, width)
    return LinearClassifiers(weight, minima.points[:, size:], minima.passes, all(minima.found))


def _shared_gradient(blocks: Blocks, weight: Tensor, bias: Tensor, num_rows: int) -> LossGradient:
    """Loss and gradient of A problems on the same rows."""
    problems, num_classes, width = weight.shape
    columns = problems * num_classes
    flat, by_weight = weight.flatten(0, 1), weight.new_zeros(columns, width)
    by_bias, doubts = torch.zeros_like(bias), bias.new_zeros(problems)
    losses = []
    rows = max(1, _BLOCK_ELEMENTS // columns)
    for features, labels in blocks():
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
        total / num_rows,
        doubts / num_rows,
        by_weight.view_as(weight) / num_rows,
        by_bias / num_rows,
    )


__getattr__ = removed_names(
    "sslkit.nn.logistic_regression",
    {"penalised_factors": "fit_logistic_regression and fit_penalties solve without them"},
)
