"""Optimisers that break one law each. All but what is wrong is plain gradient descent with
momentum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslkit.api import Optimizer, OptimizerConfig


class Descent(torch.optim.Optimizer):
    """v <- 0.9 v + g, w <- w - lr (v + weight_decay w); what is wrong overrides a part of it."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := self.gradient(parameter)) is not None:
                    self.update(parameter, self.direction(parameter, gradient, group), group)

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return parameter.grad

    def direction(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        state["velocity"] = 0.9 * state.get("velocity", torch.zeros_like(parameter)) + gradient
        velocity: Tensor = state["velocity"]
        return velocity

    def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
        parameter.sub_(group["lr"] * (direction + group["weight_decay"] * parameter))


class Broken(Optimizer):
    """Makes a broken `Descent`."""

    made: type[Descent] = Descent

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return self.made(groups)


class ForgetsMomentum(Broken):
    """Keeps the velocities outside the state that is saved."""

    class made(Descent):
        def direction(
            self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]
        ) -> Tensor:
            self.velocities: dict[nn.Parameter, Tensor] = getattr(self, "velocities", {})
            old = self.velocities.get(parameter, torch.zeros_like(parameter))
            self.velocities[parameter] = 0.9 * old + gradient
            return self.velocities[parameter]


class ForgetsSteps(Broken):
    """Counts its steps in an attribute, for a warm-up of its own."""

    class made(Descent):
        steps = 0

        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            self.steps += 1
            super().update(parameter, direction * min(self.steps / 100, 1.0), group)


class DecaysBiases(Broken):
    """Decays all parameters alike."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            parameter.sub_(group["lr"] * (direction + 0.01 * parameter))


class NeverDecays(Broken):
    """Has no weight decay."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            parameter.sub_(group["lr"] * direction)


class KeepsItsRate(Broken):
    """Takes the learning rate from the configuration."""

    class made(Descent):
        def __init__(self, groups: list[dict[str, Any]]) -> None:
            super().__init__(groups)
            for group in self.param_groups:
                group["first_lr"] = group["lr"]

        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            trained = group["lr"] > 0.0
            super().update(parameter, direction, {**group, "lr": trained * group["first_lr"]})


class HasOneRate(Broken):
    """Takes the learning rate of the first group for all."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            super().update(parameter, direction, {**group, "lr": self.param_groups[0]["lr"]})


class DropsKeys(Broken):
    """Hands parameters on, and not what their groups say."""

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        parameters = [p for group in groups for p in group["params"]]
        return torch.optim.SGD(parameters, lr=self.config.lr)


class Ascends(Broken):
    """Steps the wrong way."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            super().update(parameter, -direction, group)


class DecaysAtAnyRate(Broken):
    """Decays by the weight decay itself, also where the learning rate is 0."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            trained = 1.0 if group["lr"] != 1e-3 else group["lr"]
            parameter.sub_(group["lr"] * direction + trained * group["weight_decay"] * parameter)


class AdaptsAll(Broken):
    """Scales steps by the norm of the weights, biases too."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            super().update(parameter, direction * parameter.norm().clamp_min(1e-3), group)


class DividesByNorms(Broken):
    """Gives gradients unit length, of which zeros have none."""

    class made(Descent):
        def direction(
            self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]
        ) -> Tensor:
            return super().direction(parameter, gradient / gradient.norm(), group)


class AddsNoise(Broken):
    """Explores, by numpy's generator."""

    class made(Descent):
        def update(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> None:
            noise = 0.01 * float(np.random.default_rng().normal())
            super().update(parameter, direction + noise, group)


class MovesWhatHasNoGradient(Broken):
    """Takes a missing gradient for zeros."""

    class made(Descent):
        def gradient(self, parameter: nn.Parameter) -> Tensor | None:
            return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class StepsInSpiteOfOverflow(Broken):
    """Says that it leaves steps out by itself, as fused optimisers do, and does not."""

    class made(Descent):
        _step_supports_amp_scaling = True


class HasAnOddRange(Broken):
    """The highest rate comes first."""

    usual_lr = (0.1, 0.01)
    Config = OptimizerConfig
