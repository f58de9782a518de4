"""LARS: SGD with momentum and one learning rate per tensor (You et al. 2017, arXiv 1708.03888)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling as SimCLR uses it.

    Per tensor w with gradient g, trust coefficient eta, momentum m:

        g <- g + weight_decay * w
        t <- eta * |w| / |g|  where the group has `adapt` and both norms are above 0, else 1
        v <- m * v + lr * t * g;  w <- w - v                            (lr_in_buffer)
        v <- m * v + t * g;       w <- w - lr * v                       (otherwise)

    With `lr_in_buffer` (SimCLR's reference code) old gradients keep the rate of their time;
    without (BYOL, MoCo v3, VICReg) all history follows the current rate. Both agree while the rate
    is constant. `nesterov` steps with m * v + the newest term instead of v.

    params: tensors, or groups with `params` and any of the arguments below; exclude biases and
    normalisation through a group with `weight_decay=0, adapt=False`. Norms are taken in float32
    and nothing is read back to the host.
    Source: google-research/simclr lars_optimizer.py; deepmind-research/byol.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
        lr_in_buffer: bool = True,
        adapt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "nesterov": nesterov,
            "lr_in_buffer": lr_in_buffer,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        updates = [p.grad for p in params if p.grad is not None]
        if group["weight_decay"] != 0.0:
            updates = list(torch._foreach_add(updates, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            ratios = trust_ratios(params, updates, group["trust_coefficient"])
            updates = [update * ratio for update, ratio in zip(updates, ratios, strict=True)]
        newest, rate = (lr, 1.0) if group["lr_in_buffer"] else (1.0, lr)
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates, alpha=newest)
        if group["nesterov"]:
            torch._foreach_add_(params, buffers, alpha=-rate * momentum)
            torch._foreach_add_(params, updates, alpha=-rate * newest)
        else:
            torch._foreach_add_(params, buffers, alpha=-rate)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def trust_ratios(
    weights: list[Tensor], updates: list[Tensor], trust_coefficient: float
) -> list[Tensor]:
    """eta * |w| / |g| for each pair, 1 where a norm is 0; scalars on the tensors' device."""
    weight_norms, update_norms = torch.stack(_norms(weights)), torch.stack(_norms(updates))
    usable = (weight_norms > 0) & (update_norms > 0)
    ratios = trust_coefficient * weight_norms / update_norms.where(usable, 1.0)
    return list(ratios.where(usable, 1.0).unbind())


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """In float32 at least."""
    if tensors[0].dtype.itemsize >= torch.float32.itemsize:
        return list(torch._foreach_norm(tensors))  # with a dtype, tensors in parts are refused
    return list(torch._foreach_norm(tensors, dtype=torch.float32))
