"""Lion (Chen et al. 2023, arXiv 2302.06675): sign descent with momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from sslkit.api import Optimizer, OptimizerConfig

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class SignDescent(torch.optim.Optimizer):
    """w <- w - lr (sign(b1 m + (1 - b1) g) + decay w), then m <- b2 m + (1 - b2) g.

    m starts at 0, so that the first step is lr times the sign of the gradient."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        gradients = [p.grad for p in weights]
        momenta = [self._momentum(p) for p in weights]
        (first, second), lr = group["betas"], group["lr"]
        directions = torch._foreach_lerp(momenta, gradients, 1.0 - first)
        torch._foreach_sign_(directions)
        torch._foreach_mul_(weights, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(weights, directions, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1.0 - second)

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: torch.Tensor = state["momentum"]
        return momentum


class NewName(Optimizer):
    """Lion: every weight moves by the learning rate, whatever the size of its gradient."""

    class Config(OptimizerConfig):
        lr: float = Field(default=3e-4, gt=0.0)
        """Peak learning rate, before `lr_scaling`: by how much a weight moves in a step."""
        betas: tuple[Fraction, Fraction] = (0.9, 0.99)
        """Part of the momentum in the direction of a step, and in the next momentum."""

    config: Config
    usual_lr = (1.5e-5, 1.3e-3)  # AdamW's, three to ten times lower
    batch_rule = "sqrt"

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return SignDescent(groups, self.config.betas)
