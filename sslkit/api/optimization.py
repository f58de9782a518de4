"""Optimisers and schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import (
    Field,
    PositiveInt,
)

if TYPE_CHECKING:
    pass
from .component import Component, ComponentConfig, RunFacts
from .method import ParamGroup, Progress


class OptimizerConfig(ComponentConfig):
    """Fields that every optimiser has."""

    lr: float = Field(gt=0.0)
    """Peak learning rate, before `lr_scaling`."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """`linear`: lr * batch_size / lr_reference_batch; `sqrt`: lr * sqrt(batch_size /
    lr_reference_batch); `none`: lr as it stands."""
    lr_reference_batch: PositiveInt = 256
    """Batch size, in images, at which `lr` holds. Without effect where `lr_scaling` is `none`."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay."""
    exclude_bias_and_norm: bool = True
    """Leaves biases and normalisation parameters (all tensors with fewer than two dimensions) out
    of weight decay, and of LARS adaptation."""

    def peak_lr(self, batch_size: int) -> float:
        """The peak learning rate at this batch size, in images (Chen et al. 2020,
        arXiv:2002.05709, B.1)."""
        ratio = batch_size / self.lr_reference_batch
        factor: float = {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[self.lr_scaling]
        return self.lr * factor


def optimizer_groups(
    config: OptimizerConfig, groups: Iterable[ParamGroup], lr: float
) -> list[dict[str, Any]]:
    """What `Optimizer.create` takes: biases and norms apart from weights, which are decayed.

    Beside torch's keys each has `lr_scale` and `lr_constant`, for whoever sets learning rates."""
    parts = []
    for group in groups:
        shared = {"lr": lr, "lr_scale": group.lr_scale, "lr_constant": group.lr_constant}
        decay = config.weight_decay * group.weight_decay_scale
        excluded = [p for _, p in group.params if config.exclude_bias_and_norm and p.ndim < 2]
        kept = [p for _, p in group.params if not (config.exclude_bias_and_norm and p.ndim < 2)]
        parts += [
            {"params": kept, "weight_decay": decay, "adapt": True, **shared},
            {"params": excluded, "weight_decay": 0.0, "adapt": False, **shared},
        ]
    return [part for part in parts if part["params"]]


class Optimizer(Component, ABC):
    """Makes a torch optimiser from groups. Each group is a dict with `params`, `lr`,
    `weight_decay` and `adapt` (False: left out of layer-wise adaptation)."""

    kind = "optimizer"
    Config: ClassVar[type[ComponentConfig]] = OptimizerConfig
    usual_lr: ClassVar[tuple[float, float] | None] = None
    """Lowest and highest peak learning rate of published recipes, brought to 256 images by
    `batch_rule`; ten times beyond, `sslkit plan` warns. None: it never does."""
    batch_rule: ClassVar[Literal["linear", "sqrt"]] = "linear"
    """How the learning rate usually follows the batch size."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        batch, peak = facts.batch_size, config.peak_lr(facts.batch_size)
        if config.lr_scaling == "none" and config.lr_reference_batch not in (256, batch):
            yield (
                "lr_reference_batch",
                f"{config.lr_reference_batch} has no effect while lr_scaling is none; set "
                "lr_scaling: linear or sqrt, or leave it out",
            )
        if cls.usual_lr is None:
            return
        factor = batch / 256 if cls.batch_rule == "linear" else (batch / 256) ** 0.5
        low, high = (factor * value for value in cls.usual_lr)
        if not low / 10 <= peak <= high * 10:
            yield (
                "lr",
                f"the peak is {peak:.3g} at {batch:,} images, where published recipes come to "
                f"{low:.2g} to {high:.2g} by the {cls.batch_rule} rule; check lr and lr_scaling",
            )

    @abstractmethod
    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...


class Schedule(Component, ABC):
    """The learning rate over the run, as a factor of its peak."""

    kind = "schedule"

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The factor for the step that follows `progress.step` finished ones."""
