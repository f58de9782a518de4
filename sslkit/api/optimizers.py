"""Optimisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from sslkit.errors import RecipeError

from .component import Component, ComponentConfig, RunFacts
from .method import ParamGroup
from .schedules import Bounds, Progress, ScheduledNumber, scheduled


class OptimizerConfig(ComponentConfig):
    """Fields that every optimiser has."""

    lr: float = Field(gt=0.0)
    """Peak learning rate, before `lr_scaling`."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """`linear`: lr * batch_size / lr_reference_batch; `sqrt`: lr * sqrt(batch_size /
    lr_reference_batch); `none`: lr as it stands."""
    lr_reference_batch: PositiveInt = 256
    """Batch size, in images, at which `lr` holds. Without effect where `lr_scaling` is `none`."""
    weight_decay: Annotated[ScheduledNumber, Bounds(ge=0.0)] = scheduled(0.0)
    """Weight decay."""
    exclude_bias_and_norm: bool = True
    """Leaves biases and normalisation parameters (all tensors with fewer than two dimensions) out
    of weight decay, and of LARS adaptation."""
    no_weight_decay: tuple[str, ...] = ()
    """Names of parameters that are left out as those are, such as `"*.cls_token"`; `*` stands for
    any text. Vision transformers are often trained so."""

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

    Beside torch's keys each has `lr_scale` and `lr_constant`, and where weight decay follows a
    schedule `weight_decay_scale`, for `set_group_rules`, which goes before each step. Raises
    RecipeError where a name of `no_weight_decay` is that of no parameter."""
    groups = list(groups)
    _check_names(config.no_weight_decay, [name for group in groups for name, _ in group.params])
    parts = []
    weight_decay = config.weight_decay
    for group in groups:
        shared = {"lr": lr, "lr_scale": group.lr_scale, "lr_constant": group.lr_constant}
        decay = weight_decay.start * group.weight_decay_scale
        kept: list[nn.Parameter] = []
        excluded: list[nn.Parameter] = []
        for name, parameter in group.params:
            (excluded if _excluded(config, name, parameter) else kept).append(parameter)
        parts += [
            {"params": kept, "weight_decay": decay, "adapt": True, **shared},
            {"params": excluded, "weight_decay": 0.0, "adapt": False, **shared},
        ]
        if not weight_decay.is_constant:
            parts[-2]["weight_decay_scale"] = group.weight_decay_scale
            parts[-1]["weight_decay_scale"] = 0.0
    return [part for part in parts if part["params"]]


def _excluded(config: OptimizerConfig, name: str, parameter: nn.Parameter) -> bool:
    if config.exclude_bias_and_norm and parameter.ndim < 2:
        return True
    return any(fnmatchcase(name, pattern) for pattern in config.no_weight_decay)


def _check_names(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"optimizer.no_weight_decay: {pattern!r} is the name of no parameter that is "
                f"trained; they are called like {names[0]}"
            )


def set_group_rules(
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    lr: float,
    peak: float,
    progress: Progress,
) -> None:
    """Gives the groups of `optimizer_groups` the learning rate and the weight decay of the coming
    step. lr: of an unscaled group; peak: its highest, for groups that the schedule leaves."""
    for group in optimizer.param_groups:
        group["lr"] = (peak if group["lr_constant"] else lr) * group["lr_scale"]
        if not config.weight_decay.is_constant:
            scale = group["weight_decay_scale"]
            group["weight_decay"] = config.weight_decay.at(progress) * scale


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
