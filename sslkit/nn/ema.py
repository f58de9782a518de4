"""Momentum teachers: an exponential moving average of a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslkit.deprecation import removed_names
from sslkit.parallel.sharding import local_part

from .modes import switch_off_dropout
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

    def __init__(
        self,
        module: nn.Module,
        *,
        buffers: Literal["own", "copy"] = "own",
        dropout: bool = True,
    ) -> None:
        """dropout: False: the teacher drops nothing, where the online network has dropout or
        stochastic depth (DINO)."""
        super().__init__()
        self.module = copy.deepcopy(module)
        if not dropout:
            switch_off_dropout(self.module)
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


def share_of_start(momenta: Sequence[float], total_steps: int) -> float:
    """The part of a teacher's first weights that is left after a run: the product of the momenta
    of all steps, 0 to 1. momenta: of every step, or of so many at equal distances."""
    logarithms = torch.tensor(momenta, dtype=torch.float64).log()
    return float((logarithms.mean() * total_steps).exp())


def odd_momentum(momenta: Sequence[float], total_steps: int) -> str | None:
    """What is wrong with the momentum of a teacher over a run of so many steps, for
    `Component.warnings`: it never moves, hardly moves, or is no average. None: nothing. momenta: as
    `ScheduledNumber.values` gives them."""
    left = share_of_start(momenta, total_steps)
    if left == 1.0:
        return (
            f"{momenta[0]:g} throughout: the teacher never moves and keeps its random weights; set "
            "less than 1, such as 0.99"
        )
    if left > _MOSTLY_START:
        return (
            f"{momenta[0]:g} at the start and {momenta[-1]:g} at the end leave {left:.0%} of the "
            f"teacher's random weights after all {total_steps:,} steps: it hardly moves; lower it "
            "or train longer"
        )
    if max(momenta) < _NO_AVERAGE:
        return (
            f"{max(momenta):g}: the teacher is little more than the network one step ago, with "
            "which training fails in the papers of MoCo and BYOL; set 0.9 or more"
        )
    return None


def _matching(teacher: Any, online: Any) -> tuple[list[Tensor], list[Tensor]]:
    mine, theirs = dict(teacher), dict(online)
    if mine.keys() != theirs.keys():
        name = min(mine.keys() ^ theirs.keys())
        raise ValueError(f"teacher and online network differ: only one of them has {name}")
    # Both lie in parts in the same way, where they do.
    return [local_part(mine[name]) for name in mine], [local_part(theirs[name]) for name in mine]


__getattr__ = removed_names(
    "sslkit.nn.ema",
    {"cosine_momentum": "take a ScheduledNumber, scheduled('cosine', start=0.996, end=1.0)"},
)
