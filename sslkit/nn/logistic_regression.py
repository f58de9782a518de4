"""Multinomial logistic regression on fixed features, many problems at once.

Shapes: P problems, N rows of each, F feature width, C classes, M query rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .lbfgs import minimize

_BLOCK_ELEMENTS = 1 << 24
"""Logits held at once; the rows of a block follow from the shapes."""
_GRAM_ROWS = 1 << 13
"""Rows that the preconditioner is made from; four per feature where that is more."""


@dataclass(frozen=True)
class LinearClassifiers:
    """P linear classifiers: logits are x @ weight.T + bias."""

    weight: Tensor  # (P, C, F)
    bias: Tensor  # (P, C)
    iterations: int = 0

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


def fit_penalties(
    blocks: Blocks,
    num_rows: int,
    num_classes: int,
    *,
    l2: Sequence[float],
    start: LinearClassifiers | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> LinearClassifiers:
    """One classifier for each penalty in `l2`, all on the same features: minimises what
    `fit_logistic_regression` minimises, each problem with a search of its own, and one pass over
    the data serves all of them.

    num_rows: rows that the blocks hold together. start: P = len(l2) classifiers, default zero.
    Features should be standardised: the search is preconditioned with the Hessian at zero, which
    then is the covariance over C. Memory beside the blocks: logits (64 MiB, about three times), 25
    times the parameters of P classifiers, and P matrices (F, F)."""
    return search_penalties(
        _factors(blocks, num_rows, num_classes, l2),
        num_classes,
        lambda weight, bias: _shared_gradient(blocks, weight, bias, num_rows),
        l2=l2,
        start=start,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )


Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Weight (A, C, F) and bias (A, C) of A classifiers to their mean losses (A,), float64 on the CPU,
and the gradients by weight and bias, which may be written to."""


def search_penalties(
    factors: Tensor,
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

    factors: (P, F, F) Cholesky factors of the Hessian by the weights of a class, for each penalty;
    they precondition the search and need only be near. start: default zero."""
    width = factors.shape[-1]
    size = width * num_classes
    if start is None:
        points = factors.new_zeros(len(l2), size + num_classes)
    else:
        points = torch.cat([start.weight.flatten(1), start.bias], dim=1)

    def objective(problems: Sequence[int], points: Tensor) -> tuple[list[float], Tensor]:
        weight = points[:, :size].view(len(problems), num_classes, width)
        strengths = points.new_tensor([l2[problem] for problem in problems])
        losses, by_weight, by_bias = gradient(weight, points[:, size:])
        by_weight += strengths[:, None, None] * weight
        losses += 0.5 * (strengths * weight.square().sum(dim=(1, 2))).cpu().double()
        return losses.tolist(), torch.cat([by_weight.flatten(1), by_bias], dim=1)

    def precondition(problem: int, vector: Tensor) -> Tensor:
        weight = vector[:size].view(num_classes, width)
        solved = torch.cholesky_solve(weight.T, factors[problem]).T
        return torch.cat([solved.flatten(), num_classes * vector[size:]])

    found, passes = minimize(
        objective, points, precondition, max_iterations=max_iterations, tolerance=tolerance
    )
    weight = found[:, :size].view(len(l2), num_classes, width)
    return LinearClassifiers(weight, found[:, size:], passes)


def penalised_factors(hessian: Tensor, l2: Sequence[float]) -> Tensor:
    """(P, F, F) float32 Cholesky factors of a (F, F) float64 Hessian + each penalty."""
    one = torch.eye(len(hessian), dtype=torch.float64)
    factors = [torch.linalg.cholesky(hessian + strength * one).float() for strength in l2]
    return torch.stack(factors)


def _factors(blocks: Blocks, num_rows: int, num_classes: int, l2: Sequence[float]) -> Tensor:
    """(P, F, F) Cholesky factors of the Hessian at zero, covariance / C + l2, by weights of one
    class. A few rows per feature are enough: it only has to be near."""
    gram, used = torch.zeros(()), 0
    for x, _ in blocks():
        wanted = max(_GRAM_ROWS, 4 * x.shape[1])
        part = x[:: max(1, num_rows // wanted)]
        gram, used = gram.to(x) + part.T @ part, used + len(part)
    hessian = gram.cpu().double() / (used * num_classes)
    return penalised_factors(hessian, l2).to(gram.device)


def _shared_gradient(
    blocks: Blocks, weight: Tensor, bias: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean cross entropies of A problems (A,), float64 on the CPU, and their gradients by
    weight (A, C, F) and bias (A, C)."""
    problems, num_classes, width = weight.shape
    columns = problems * num_classes
    flat, by_weight = weight.flatten(0, 1), weight.new_zeros(columns, width)
    by_bias = torch.zeros_like(bias)
    losses = []
    rows = max(1, _BLOCK_ELEMENTS // columns)
    for features, labels in blocks():
        for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            logits = torch.addmm(bias.flatten(), x, flat.T).view(len(x), problems, num_classes)
            log_p = F.log_softmax(logits, dim=2)
            target = y[:, None, None].expand(-1, problems, 1)
            losses.append(-log_p.gather(2, target).sum(dim=(0, 2)))
            residual = log_p.exp_()
            residual.scatter_add_(2, target, -torch.ones_like(residual[..., :1]))
            by_weight.addmm_(residual.flatten(1).T, x)
            by_bias += residual.sum(dim=0)
    total = torch.stack(losses).cpu().double().sum(dim=0)
    return total / num_rows, by_weight.view_as(weight) / num_rows, by_bias / num_rows
