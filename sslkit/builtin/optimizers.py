"""Optimisers: torch's SGD, Adam and AdamW, and LARS.

torch's run in their `fused` form: each parameter and its state are read and written once, where
the plain loop does so for every operation. On a CPU that is most of the optimiser's time.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import torch
from pydantic import Field, PositiveFloat, model_validator

from sslkit.api import Optimizer, OptimizerConfig
from sslkit.nn import lars
from sslkit.parallel.sharding import is_sharded

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

_ADAM_LR = (1.5e-4, 4e-3)
"""MAE 1.5e-4, DINO 5e-4; small convolutional networks up to 4e-3."""


class SGD(Optimizer):
    """torch.optim.SGD: v <- m v + g, w <- w - lr v. Weight decay is added to the gradient."""

    class Config(OptimizerConfig):
        momentum: Fraction = 0.9
        """Momentum."""
        nesterov: bool = False
        """Nesterov's form of momentum."""

        @model_validator(mode="after")
        def _nesterov_has_momentum(self) -> Self:
            if self.nesterov and self.momentum == 0.0:
                raise ValueError("nesterov needs momentum above 0")
            return self

    config: Config
    usual_lr = (0.03, 0.125)  # MoCo v2 0.03, SimSiam 0.05; lightly's CIFAR 0.12, SupCon 0.125

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        # torch has no fused form of it for weights that lie in parts.
        whole = not any(is_sharded(p) for group in groups for p in group["params"])
        optimizer = torch.optim.SGD(
            groups, momentum=config.momentum, nesterov=config.nesterov, fused=whole
        )
        # torch leaves the buffers of its first fused step uninitialised where float16 skips it.
        for group in optimizer.param_groups if config.momentum else ():
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


class AdamConfig(OptimizerConfig):
    """Fields of Adam and AdamW."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the mean of gradients and of the mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""


class Adam(Optimizer):
    """torch.optim.Adam. Weight decay is added to the gradient; see `adamw` for the decoupled."""

    Config = AdamConfig
    config: AdamConfig
    usual_lr = _ADAM_LR
    batch_rule = "sqrt"

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.Adam(groups, betas=config.betas, eps=config.eps, fused=True)


class AdamW(Optimizer):
    """torch.optim.AdamW: w <- w - lr * weight_decay * w beside Adam's step."""

    Config = AdamConfig
    config: AdamConfig
    usual_lr = _ADAM_LR
    batch_rule = "sqrt"

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)


class LARS(Optimizer):
    """LARS as SimCLR uses it; see `sslkit.nn.lars.LARS` for the formulas.

    Groups with `adapt: False` (biases and normalisation, with `exclude_bias_and_norm`) take plain
    momentum steps at the full learning rate.
    """

    class Config(OptimizerConfig):
        momentum: Fraction = 0.9
        """Momentum."""
        nesterov: bool = False
        """Nesterov's form of momentum."""
        trust_coefficient: PositiveFloat = 0.001
        """Ratio of the step's norm to the weight's norm, at learning rate 1."""
        lr_in_buffer: bool = True
        """True: the learning rate enters the momentum buffer (SimCLR); False: it scales the
        buffer (BYOL, MoCo v3, VICReg). They differ while the learning rate changes."""

    config: Config
    usual_lr = (0.2, 1.2)  # BYOL 0.2, SimCLR 0.3 by the linear and 1.2 by the square-root rule

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        return lars.LARS(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            trust_coefficient=config.trust_coefficient,
            nesterov=config.nesterov,
            lr_in_buffer=config.lr_in_buffer,
        )
