"""From a method's parameter groups to an optimiser step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslkit.errors import RecipeError
from sslkit.interfaces import (
    Method,
    Optimizer,
    OptimizerConfig,
    ParamGroup,
    Progress,
    Schedule,
    optimizer_groups,
)


def scaled_lr(config: OptimizerConfig, batch_size: int) -> float:
    """The peak learning rate at this batch size (methods.md 0.3 calls these rules linear and
    square root; Chen et al. 2020, appendix B.1)."""
    return config.peak_lr(batch_size)


class Optimization:
    """The optimiser, its learning rate and its clipping."""

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        batch_size: int,
        max_grad_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        """scaler: of the loss, for gradients in float16."""
        config: OptimizerConfig = optimizer.config
        self.schedule = schedule
        self.peak_lr = scaled_lr(config, batch_size)
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        self.groups = method.param_groups()
        _check_groups(method, self.groups)
        self.optimizer = optimizer.create(optimizer_groups(config, self.groups, self.peak_lr))
        self._rules = [_rules(group) for group in self.optimizer.param_groups]

    def set_lr(self, progress: Progress) -> float:
        """Sets the learning rate of the coming step and returns that of an unscaled group."""
        lr = self.peak_lr * self.schedule.factor(progress)
        for group in self.optimizer.param_groups:
            base = self.peak_lr if group["lr_constant"] else lr
            group["lr"] = base * group["lr_scale"]
        return lr

    def backward(self, loss: Tensor) -> None:
        """The gradient of the loss, times the scale where there is one, until `unscale`."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self) -> None:
        """Brings gradients to their true size; they may be infinite then, in float16."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def clip(self) -> None:
        """Clips gradients as the recipe (whole) and the method's groups (each tensor) say."""
        for group in self.groups:
            if group.max_grad_norm is not None:
                for _, parameter in group.params:
                    nn.utils.clip_grad_norm_(parameter, group.max_grad_norm)
        if self.max_grad_norm is not None:
            parameters = [p for group in self.groups for _, p in group.params]
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    def step(self) -> None:
        """Updates the parameters, unless a gradient in float16 overflowed, and drops the
        gradients."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def metrics(self) -> dict[str, float]:
        """What is worth a line in the log; waits for the device."""
        return {} if self.scaler is None else {"loss_scale": self.scaler.get_scale()}

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and the scale of the loss where there is one."""
        state = self.optimizer.state_dict()
        return state if self.scaler is None else {**state, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the optimiser's state: its moments, and not its rules (weight decay, momentum),
        which are those of the recipe, also where a fork changes them.

        Raises ValueError for the state of another optimiser."""
        for rules, saved in zip(self._rules, state["param_groups"], strict=False):
            if rules.keys() != _rules(saved).keys():
                raise ValueError("it is the state of another optimiser")
        self.optimizer.load_state_dict({key: state[key] for key in ("state", "param_groups")})
        if self.scaler is not None and "scaler" in state:  # a fork may come from another precision
            self.scaler.load_state_dict(state["scaler"])
        self._match_layouts()
        for group, rules in zip(self.optimizer.param_groups, self._rules, strict=True):
            group.update(rules)

    def _match_layouts(self) -> None:
        """Gives moments the memory layout of their parameter, which fused optimisers rely on: a
        fork may train in channels_last what was saved without, or the other way round."""
        for parameter, entry in self.optimizer.state.items():
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _rules(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _check_groups(method: Method, groups: list[ParamGroup]) -> None:
    named = [p for group in groups for _, p in group.params]
    if not named:
        raise RecipeError(f"method: {type(method).__name__} has no parameter to train")
    if len({id(p) for p in named}) != len(named):
        raise RecipeError(f"method: {type(method).__name__} lists a parameter in two groups")
