"""Multinomial logistic regression on fixed features, many problems at once.

Shapes: P problems, N rows of each, F feature width, C classes, M query rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.deprecation import removed_names

BLOCK_ELEMENTS = 1 << 24
"""Logits held at once; the rows of a block follow from the shapes."""


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
        rows = max(1, BLOCK_ELEMENTS // self.weight.shape[1])
        return torch.cat(
            [
                torch.addmm(self.bias[problem], part, self.weight[problem].T).argmax(dim=1)
                for part in torch.split(queries, rows)
            ]
        )

    def predict_all(self, queries: Tensor) -> Tensor:
        """Classes (P, M) of the queries under each classifier, in one product."""
        problems, num_classes, _ = self.weight.shape
        rows = max(1, BLOCK_ELEMENTS // (problems * num_classes))
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
        rows = max(1, BLOCK_ELEMENTS // (problems * num_classes))
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
    rows = max(1, BLOCK_ELEMENTS // (problems * num_classes))
    for x, y in zip(torch.split(features, rows, 1), torch.split(labels, rows, 1), strict=True):
        log_p = F.log_softmax(torch.baddbmm(bias[:, None], x, weight.mT), dim=2)
        loss = loss - log_p.gather(2, y[..., None]).sum()
        residual = log_p.exp_()
        residual.scatter_add_(2, y[..., None], -torch.ones_like(residual[..., :1]))
        weight_gradient.baddbmm_(residual.mT, x)  # (C, F): the other way round is 10 times slower
        bias_gradient += residual.sum(dim=1)
    return loss / num_rows, weight_gradient / num_rows, bias_gradient / num_rows


__getattr__ = removed_names(
    "sslkit.nn.logistic_regression",
    {
        "penalised_factors": "fit_logistic_regression and fit_penalties solve without them",
        **dict.fromkeys(
            ("fit_penalties", "feature_curvature"),
            "it is in sslkit.nn.penalty_search, and takes LabelledRows",
        ),
    },
)
