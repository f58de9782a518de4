"""Linear classifiers by SGD on fixed features: a whole grid of settings in one pass.

Shapes: P classifiers, B rows of a batch, F feature width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.randomness import Order

from .logistic_regression import LinearClassifiers
from .standardised import Standardised

_MOMENTUM = 0.9


def fit_by_sgd(
    data: Standardised,
    num_classes: int,
    *,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
) -> LinearClassifiers:
    """One classifier for each pair of lr and weight decay, all from the same batches: SGD with
    Nesterov momentum of 0.9 on the mean cross entropy, from zero, the learning rate along a cosine
    to 0 without warm-up (the linear evaluation of Chen et al. 2020, arXiv:2002.05709, B.6, on
    features that stay as they are).

    lr, weight_decay: of each of the P classifiers; the weights decay and the biases do not. A
    batch is one product with the weights of all classifiers, (B, F) by (F, P * C). The order of the
    rows follows from the seed and the epoch. The last, partial batch of an epoch is left out;
    fewer rows than `batch_size` make one batch. A classifier that diverges is given back as zero.
    """
    count, size = len(data), min(batch_size, len(data))
    steps = count // size
    state = _Momentum(data, num_classes, lr, weight_decay)
    kept = next(data.blocks()) if data.fits else None
    for epoch in range(epochs):
        order = Order(seed, epoch, count)[:]
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            factor = 0.5 * (1.0 + math.cos(math.pi * (epoch * steps + step) / (epochs * steps)))
            if kept is None:
                features, labels = next(data.select(rows).blocks())
            else:
                rows = rows.to(data.device)
                features, labels = kept[0][rows], kept[1][rows]
            state.step(features, labels, factor)
    return state.classifiers()


class _Momentum:
    """Weights of P classifiers, (P * C, F) and (P * C,), and their momentum."""

    def __init__(
        self,
        data: Standardised,
        num_classes: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> None:
        self.shape = len(lr), num_classes, data.width
        like = data.features.new_empty(0, device=data.device)
        self.weight = like.new_zeros(len(lr) * num_classes, data.width)
        self.bias = like.new_zeros(len(lr) * num_classes)
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lr = like.new_tensor(lr).repeat_interleave(num_classes)
        self.decay = like.new_tensor(weight_decay).repeat_interleave(num_classes)

    def step(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """One step on a batch, the learning rates multiplied by `factor`."""
        problems, num_classes, _ = self.shape
        logits = torch.addmm(self.bias, features, self.weight.T)
        residual = F.softmax(logits.view(-1, problems, num_classes), dim=2)
        target = labels[:, None, None].expand(-1, problems, 1)
        residual.scatter_add_(2, target, -torch.ones_like(residual[..., :1]))
        residual = residual.flatten(1).div_(len(features))
        by_weight = torch.addcmul(residual.T @ features, self.decay[:, None], self.weight)
        by_bias = residual.sum(dim=0)
        rate = factor * self.lr
        for tensor, velocity, gradient, lr in (
            (self.weight, self.velocity[0], by_weight, rate[:, None]),
            (self.bias, self.velocity[1], by_bias, rate),
        ):
            velocity.mul_(_MOMENTUM).add_(gradient)
            gradient.add_(velocity, alpha=_MOMENTUM)  # Nesterov
            tensor.addcmul_(lr, gradient, value=-1.0)

    def classifiers(self) -> LinearClassifiers:
        """What was found; zero for those that are not finite."""
        problems, num_classes, width = self.shape
        weight = self.weight.view(problems, num_classes, width)
        bias = self.bias.view(problems, num_classes)
        finite = weight.isfinite().all(dim=2).all(dim=1) & bias.isfinite().all(dim=1)
        return LinearClassifiers(
            torch.where(finite[:, None, None], weight, 0.0), torch.where(finite[:, None], bias, 0.0)
        )
