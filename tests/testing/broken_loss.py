"""Losses that break one law each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.api import ComponentConfig, Loss, LossInput, Progress, ScheduledNumber, scheduled
from sslkit.nn.functional import info_nce, normalize, nt_xent
from sslkit.nn.numerics import without_autocast


class Sound(Loss):
    """NT-Xent, of which the others are made."""

    def forward(self, inputs: LossInput) -> Tensor:
        return nt_xent(*inputs.views, 0.5)


class MovesItsCentre(Sound):
    """Centres embeddings by a running mean that forward moves, as BatchNorm would."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("centre", torch.zeros(16))

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = inputs.views
        self.centre = 0.9 * self.centre + 0.1 * torch.cat(inputs.views).detach().mean(dim=0)
        return nt_xent(first - self.centre, second - self.centre, 0.5)


class CountsItsMetrics(Sound):
    """Averages a metric over the calls."""

    calls = 0

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        self.calls += 1
        return {"norm": inputs.views[0].detach().norm(dim=1).mean()}


class TakesTheFirstForAnchors(Sound):
    """One direction of two: who comes first is the query."""

    def forward(self, inputs: LossInput) -> Tensor:
        return info_nce(*inputs.views, None, 0.5, symmetric=False)


class LooksAtLabels(Sound):
    """Leaves out negatives of the same class, and does not say that it needs labels."""

    def forward(self, inputs: LossInput) -> Tensor:
        assert inputs.labels is not None
        first, second = map(normalize, inputs.views)
        same = inputs.labels[:, None] == inputs.labels
        same.fill_diagonal_(False)
        with without_autocast(first):
            logits = (first @ second.T / 0.5).masked_fill(same, -torch.inf)
            targets = torch.arange(len(first))
            return 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))


class LooksAtLabelsIfThereAreAny(LooksAtLabels):
    """The same, and plain NT-Xent where there are none."""

    def forward(self, inputs: LossInput) -> Tensor:
        if inputs.labels is None:
            return nt_xent(*inputs.views, 0.5)
        return super().forward(inputs)


class DividesByTheDeviation(Sound):
    """Whitens by the standard deviation, which is 0 where embeddings are equal."""

    def forward(self, inputs: LossInput) -> Tensor:
        whitened = [(x.float() - x.float().mean(0)) / x.float().std(0) for x in inputs.views]
        return F.mse_loss(*whitened)


class TakesTheRootOfNothing(Sound):
    """The distance itself, whose root has no gradient at 0."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = map(normalize, inputs.views)
        return (first - second).square().sum(dim=1).sqrt().mean()


class DividesByNorms(Sound):
    """Normalises without an epsilon."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = (x.float() / x.float().norm(dim=1, keepdim=True) for x in inputs.views)
        return (2.0 - 2.0 * (first * second).sum(dim=1)).mean()


class Overflows(Sound):
    """Exponentials of what may be large."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = (x.float() for x in inputs.views)
        return (first - second).square().mean(dim=1).exp().mean()


class NeedsThreeImages(Sound):
    """Divides by two less than the images of a batch."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = map(normalize, inputs.views)
        return (first - second).square().sum() / (len(first) - 2)


class MultipliesInHalf(Sound):
    """A product of matrices, which autocast takes in half precision."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = (F.normalize(x.float(), dim=1) for x in inputs.views)
        logits = first @ second.T / 0.5
        targets = torch.arange(len(first))
        return 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))


class StaysInHalf(Sound):
    """Computes in the type of what it is given."""

    def forward(self, inputs: LossInput) -> Tensor:
        return F.mse_loss(*inputs.views)


class CentresInPlace(Sound):
    """A metric that centres what it is given, to save memory."""

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        first = inputs.views[0]
        first -= first.mean(dim=0)
        return {"norm": first.norm()}


class KeepsGraphs(Sound):
    """Watches a temperature that is trained, with all that its gradient needs."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.log_temperature = torch.nn.Parameter(torch.tensor(-0.7))

    def forward(self, inputs: LossInput) -> Tensor:
        return nt_xent(*inputs.views, 1.0) * self.log_temperature.exp()

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        return {"temperature": self.log_temperature.exp()}


class HidesItsCentre(Sound):
    """Keeps a centre in an attribute, which no checkpoint holds."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.centre = torch.zeros(16)

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = inputs.views
        return nt_xent(first - self.centre, second - self.centre, 0.5)

    def after_step(self, progress: Progress, inputs: Sequence[LossInput]) -> None:
        for each in inputs:
            self.centre = 0.9 * self.centre + 0.1 * torch.cat(each.views).mean(dim=0)


class ReadsItsNumberOnce(Sound):
    """Takes the temperature that a run begins with."""

    class Config(ComponentConfig):
        temperature: ScheduledNumber = scheduled(0.5)
        """Softmax temperature."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.temperature = config.temperature.start

    def forward(self, inputs: LossInput) -> Tensor:
        return nt_xent(*inputs.views, self.temperature)


class AddsNoise(Sound):
    """Noise by numpy's generator."""

    def forward(self, inputs: LossInput) -> Tensor:
        noise = 1.0 + 0.1 * float(np.random.normal())  # noqa: NPY002
        return noise * super().forward(inputs)


class RequiresWhatItIgnores(Sound):
    """Asks for labels and makes nothing of them."""

    requires = frozenset({"labels"})


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2.0 * gradients[0]


class DerivesWrongly(Sound):
    """A backward pass that was written by hand, twice too large."""

    def forward(self, inputs: LossInput) -> Tensor:
        doubled: Tensor = _Doubled.apply(super().forward(inputs))  # type: ignore[no-untyped-call]
        return doubled


class DividesByOverlap(Sound):
    """Divides by how far embeddings of different images overlap, which may be nothing."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = map(normalize, inputs.views)
        others = ~torch.eye(len(first), dtype=torch.bool)
        distances = (first[:, None] - second).square().sum(dim=-1)[others]
        overlap = (2.0 - distances).square().mean()
        return (first - second).square().sum(dim=1).mean() / overlap


class _KeptForOne(torch.autograd.Function):
    """Half of the square, which keeps its input where there is room for one."""

    kept: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        _KeptForOne.kept = x
        return 0.5 * x.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * _KeptForOne.kept


class RemembersOneCall(Sound):
    """A backward pass by hand that knows the last call alone."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = map(normalize, inputs.views)
        halves: Tensor = _KeptForOne.apply(first - second)  # type: ignore[no-untyped-call]
        return halves.sum(dim=1).mean()


class GivesRows(Sound):
    """A loss for each image."""

    def forward(self, inputs: LossInput) -> Tensor:
        return super().forward(inputs).expand(len(inputs.views[0]))


class StopsOneView(Sound):
    """Regards the second view as a target."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = inputs.views
        return F.mse_loss(normalize(first), normalize(second).detach())


class FavoursTheFirstImage(Sound):
    """Weights images by their place in the batch."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = map(normalize, inputs.views)
        weights = torch.linspace(1.0, 0.5, len(first)).to(first)
        return (weights * (first - second).square().sum(dim=1)).mean()
