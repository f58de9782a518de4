"""Momentum teachers: an exponential moving average of a network."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .numerics import full_precision

_MOSTLY_START = 0.5
"""With more of its random weights left at the end, a teacher has hardly moved."""
_NO_AVERAGE = 0.5
"""MoCo fails at 0 and works at 0.9 (arXiv 1911.05722, section 4.1); BYOL has 0.3 % at 0 and 68.4 %
at 0.9 (arXiv 2006.07733, table 5a)."""


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


def share_of_start(total_steps: int, start: float, end: float = 1.0) -> float:
    """The part of a teacher's first weights that is left after a run with `cosine_momentum` from
    `start` to `end`: the product of all momenta, 0 to 1."""
    fractions = torch.arange(total_steps, dtype=torch.float64) / max(total_steps, 1)
    momenta = end - (end - start) * 0.5 * (1.0 + torch.cos(math.pi * fractions))
    return float(momenta.log().sum().exp())


def odd_momentum(total_steps: int, start: float, end: float) -> str | None:
    """What is wrong with the momentum of a teacher over a run of so many steps, for
    `Component.warnings`: it never moves, hardly moves, or is no average. None: nothing."""
    left = share_of_start(total_steps, start, end)
    if left == 1.0:
        return (
            f"{start:g} throughout: the teacher never moves and keeps its random weights; set less "
            "than 1, such as 0.99"
        )
    if left > _MOSTLY_START:
        return (
            f"{start:g} at the start and {end:g} at the end leave {left:.0%} of the teacher's "
            f"random weights after all {total_steps:,} steps: it hardly moves; lower it or train "
            "longer"
        )
    if max(start, end) < _NO_AVERAGE:
        return (
            f"{max(start, end):g}: the teacher is little more than the network one step ago, with "
            "which training fails in the papers of MoCo and BYOL; set 0.9 or more"
        )
    return None


def _matching(teacher: Any, online: Any) -> tuple[list[Tensor], list[Tensor]]:
    mine, theirs = dict(teacher), dict(online)
    if mine.keys() != theirs.keys():
        name = min(mine.keys() ^ theirs.keys())
        raise ValueError(f"teacher and online network differ: only one of them has {name}")
    return list(mine.values()), [theirs[name].detach() for name in mine]
