"""Momentum teachers: an exponential moving average of a network."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .numerics import full_precision


class EMATeacher(nn.Module):
    """A frozen copy of `module` that follows it: xi <- m xi + (1 - m) theta.

    The average runs over parameters and is kept in float32 (float64 stays): in half precision the
    increment (1 - m)(theta - xi) would round away. `buffers` says what happens to BatchNorm
    statistics:

    - "own": the teacher, in training mode as the rest of the method, gathers statistics from its
      own forward passes; nothing is copied (BYOL, MoCo, DINO);
    - "copy": each update copies the buffers of the online network, for a teacher that is put into
      eval mode.

    A forward pass takes no gradient. Call `update` once per optimiser step, in
    `Method.after_step` (BYOL, DINO: the new online weights) or `Method.before_step` (MoCo).
    """

    def __init__(self, module: nn.Module, *, buffers: Literal["own", "copy"] = "own") -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.buffer_policy = buffers
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
            parameter.data = full_precision(parameter.data)
            parameter.grad = None

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's output."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: float) -> None:
        """Moves towards `online`; momentum 1 changes nothing, 0 copies.

        Raises ValueError where the two differ in structure or momentum is outside [0, 1].
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], not {momentum}")
        own, other = _matching(self.module.named_parameters(), online.named_parameters())
        if own:
            aligned = [b.to(a) for a, b in zip(own, other, strict=True)]
            torch._foreach_lerp_(own, aligned, 1.0 - momentum)
        if self.buffer_policy == "copy":
            own, other = _matching(self.module.named_buffers(), online.named_buffers())
            for mine, theirs in zip(own, other, strict=True):
                mine.copy_(theirs)


def cosine_momentum(fraction: float, start: float, end: float = 1.0) -> float:
    """end - (end - start) (1 + cos(pi fraction)) / 2: `start` at fraction 0, `end` at 1.

    The schedule of BYOL, MoCo v3 and DINO, with `fraction` the part of training that is done.
    Source: Grill et al. 2020, arXiv 2006.07733, section 3.3.
    """
    return end - (end - start) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def _matching(teacher: Any, online: Any) -> tuple[list[Tensor], list[Tensor]]:
    mine, theirs = dict(teacher), dict(online)
    if mine.keys() != theirs.keys():
        name = min(mine.keys() ^ theirs.keys())
        raise ValueError(f"teacher and online network differ: only one of them has {name}")
    return list(mine.values()), [theirs[name].detach() for name in mine]
