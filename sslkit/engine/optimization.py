"""From a method's parameter groups to an optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslkit.api import (
    Method,
    Optimizer,
    OptimizerConfig,
    ParamGroup,
    Progress,
    Schedule,
    optimizer_groups,
    set_group_rules,
)
from sslkit.api.schedules import checked_factor
from sslkit.errors import PluginError
from sslkit.parallel.sharding import is_sharded, local_part

from .split_groups import SplitGroups

_SMALLEST_SCALE = 1.0
"""Scale of the loss in float16. A gradient that is not finite at it was not made so by it."""


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
        self.lr = self.peak_lr
        """Learning rate of the coming step, or of the step under way."""
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        self.groups = method.param_groups()
        _check_groups(method, self.groups)
        self._parameters = [p for group in self.groups for _, p in group.params]
        self.config = config
        self._split = SplitGroups(optimizer_groups(config, self.groups, self.peak_lr))
        self.optimizer = optimizer.create(self._split.groups)
        _check_optimizer(optimizer, self.optimizer, self._split.groups)
        self._split.check(self.optimizer)
        self._rules = [_rules(group) for group in self.optimizer.param_groups]

    def set_rules(self, progress: Progress) -> float:
        """Sets the learning rate and the weight decay of the coming step. Returns the learning rate
        of an unscaled group."""
        self.lr = self.peak_lr * checked_factor(self.schedule, progress)
        set_group_rules(self.optimizer, self.config, self.lr, self.peak_lr, progress)
        return self.lr

    def backward(self, loss: Tensor) -> None:
        """The gradient of the loss, times the scale where there is one, until `unscale`."""
        self.scaled(loss).backward()  # type: ignore[no-untyped-call]

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss, times the scale where there is one."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self) -> None:
        """Brings gradients to their true size; they may be infinite then, in float16."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def clip(self) -> Tensor:
        """Clips gradients as the method's groups (each tensor) and the recipe (whole) say. Returns
        the norm of the whole gradient as it was before, a scalar on the device."""
        norm = self._grad_norm()
        tensorwise = [group for group in self.groups if group.max_grad_norm is not None]
        for group in tensorwise:
            for _, parameter in group.params:
                nn.utils.clip_grad_norm_(parameter, group.max_grad_norm or math.inf)
        if self.max_grad_norm is not None:
            left = self._grad_norm() if tensorwise else norm
            clip_to(self._gradients(), self.max_grad_norm, left)
        return norm

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _grad_norm(self) -> Tensor:
        return norm_of_all(self._gradients())

    def step(self) -> None:
        """Updates the parameters, unless a gradient in float16 overflowed, and drops the
        gradients."""
        if self.scaler is None:
            self._split.step(self.optimizer)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def overflows(self) -> bool:
        """Whether a gradient that is not finite may be one that the scale of the loss has made so:
        the step is then left out, and the scale lowered. Waits for the device."""
        return self.scaler is not None and self.scaler.get_scale() > _SMALLEST_SCALE

    def metrics(self) -> dict[str, float]:
        """What is worth a line in the log; waits for the device."""
        return {} if self.scaler is None else {"loss_scale": self.scaler.get_scale()}

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        """The optimiser's state, and the scale of the loss where there is one. Where parameters lie
        in parts, all ranks call this together. keep: whether this rank wants those parts."""
        state = self._split.joined(self.optimizer.state_dict(), keep=keep)
        return state if self.scaler is None else {**state, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the optimiser's state: its moments, and not its rules (weight decay, momentum),
        which are those of the recipe, also where a fork changes them.

        Raises ValueError for the state of another optimiser."""
        given = self._split.cut({key: state[key] for key in ("state", "param_groups")})
        for rules, saved in zip(self._rules, given["param_groups"], strict=False):
            # Some count their steps in the group, from the first one on: that is no rule.
            counted = {k: v for k, v in _rules(saved).items() if k not in rules}
            if rules.keys() - saved.keys() or not all(map(_is_number, counted.values())):
                raise ValueError("it is the state of another optimiser")
        self.optimizer.load_state_dict(given)
        if self.scaler is not None and "scaler" in state:  # a fork may come from another precision
            self.scaler.load_state_dict(state["scaler"])
        self._check_entries()
        self._match_layouts()
        for group, rules in zip(self.optimizer.param_groups, self._rules, strict=True):
            group.update(rules)

    def _check_entries(self) -> None:
        """Raises ValueError where what is kept for one parameter is not of the kind that it is for
        the others: a step with it would fail inside the optimiser."""
        kinds: dict[str, set[str]] = {}
        for parameter, entry in self.optimizer.state.items():
            for name, value in entry.items():
                of_one = isinstance(value, Tensor) and value.numel() == parameter.numel() == 1
                if value is not None and not of_one:  # None: a momentum that has not begun
                    kinds.setdefault(name, set()).add(_kind(value, parameter))
        for name, found in kinds.items():
            if len(found) > 1:
                raise ValueError(f"the optimiser's '{name}' is {' and '.join(sorted(found))}")

    def _match_layouts(self) -> None:
        """Gives moments the memory layout of their parameter, which fused optimisers rely on: a
        fork may train in channels_last what was saved without, or the other way round."""
        for parameter, entry in self.optimizer.state.items():
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def norm_of_all(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar. Where some lie in parts, all ranks call this
    together."""
    sharded = [gradient for gradient in gradients if is_sharded(gradient)]
    if not sharded:
        return nn.utils.get_total_norm(gradients)
    found: Any = nn.utils.get_total_norm(sharded)
    in_parts: Tensor = found.full_tensor()
    whole = nn.utils.get_total_norm([g for g in gradients if not is_sharded(g)])
    norm: Tensor = torch.linalg.vector_norm(torch.stack([in_parts, whole.to(in_parts)]))
    return norm


def clip_to(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scales gradients so that their norm is at most so large, as
    `torch.nn.utils.clip_grads_with_norm_` does. norm: what it is."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)


def _kind(value: Any, parameter: Tensor) -> str:
    """What an optimiser keeps for a parameter, in words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.shape == parameter.shape:
        return "a tensor of its parameter's shape"
    return "one number" if value.numel() == 1 else "a tensor of another shape"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _rules(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _check_groups(method: Method, groups: list[ParamGroup]) -> None:
    """Raises PluginError where the groups do not name parameters of the method, once each."""
    who = f"method: {type(method).__name__}.param_groups"
    if not isinstance(groups, Sequence) or not all(isinstance(g, ParamGroup) for g in groups):
        raise PluginError(f"{who} gave {_kinds(groups)}; valid is a list of ParamGroup")
    names = {id(p): name for name, p in method.named_parameters(remove_duplicate=False)}
    seen: set[int] = set()
    for pair in (pair for group in groups for pair in group.params):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], nn.Parameter)):
            raise PluginError(
                f"{who} gave {_kinds(pair)} among the params of a group; valid are pairs of a name "
                "and a parameter, as named_parameters() gives them"
            )
        name, parameter = pair
        if id(parameter) not in names:
            raise PluginError(
                f"{who} names '{name}', which is no parameter of the method; valid are those of "
                "its named_parameters()"
            )
        if id(parameter) in seen:
            raise PluginError(
                f"{who} names the parameter '{names[id(parameter)]}' twice; name each one once"
            )
        seen.add(id(parameter))
    if not seen:
        raise PluginError(
            f"{who}: {type(method).__name__} has no parameter to train; name at least one"
        )


def _check_optimizer(maker: Optimizer, made: object, groups: list[dict[str, Any]]) -> None:
    """Raises PluginError where `Optimizer.create` did not give what trains these parameters."""
    who = f"optimizer: {type(maker).__name__}.create"
    if not isinstance(made, torch.optim.Optimizer):
        raise PluginError(f"{who} gave {_kinds(made)}; valid is a torch.optim.Optimizer")
    given = [id(p) for group in made.param_groups for p in group["params"]]
    wanted = {id(p) for group in groups for p in group["params"]}
    if len(given) != len(set(given)) or set(given) != wanted:
        raise PluginError(
            f"{who} made an optimiser of {len(given)} parameters ({len(set(given) & wanted)} of "
            f"the {len(wanted)} that it was given); valid is each of the given ones once"
        )
    keys = groups[0].keys() - {"params"}
    lost = sorted(k for k in keys if any(k not in group for group in made.param_groups))
    if lost:
        raise PluginError(
            f"{who} dropped {' and '.join(lost)} from the groups; pass each group on with its keys"
        )


def _kinds(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        inside = sorted({type(item).__name__ for item in value})
        return f"a {type(value).__name__} of {' and '.join(inside) or 'nothing'}"
    return type(value).__name__
