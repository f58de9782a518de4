"""A short course of training in float64, in this process and shared by several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sslkit.engine.training import Training
from sslkit.parallel.world import World

from .forked import LIMIT_S, on_ranks
from .small_runs import (
    SmallRuns,
    Tensors,
    copied,
    still,
    take_steps,
    watch_gradients,
    without_dropout,
)
from .subject import plugin_module


def course(t: Training, *, batch_norm: bool = True) -> Tensors:
    """Losses, the gradient of the first step and the state after the last, by name. batch_norm:
    whether it has the statistics of its batch."""
    (without_dropout if batch_norm else still)(t.method)
    first: Tensors = {}

    def see() -> None:
        if not first:
            grads = {n: p.grad for n, p in t.method.named_parameters() if p.grad is not None}
            first.update((f"the gradient of {name}", g) for name, g in copied(grads).items())

    watch_gradients(t, see)
    taken = take_steps(t)
    losses = {"the loss": torch.tensor(taken.losses, dtype=torch.float64)}
    floating = {name: v for name, v in taken.state.items() if v.is_floating_point()}
    # Gradients that are zero but for rounding, such as those of a bias before BatchNorm, have no
    # size of their own: they are held against the largest of all.
    largest = max((float(g.abs().max()) for g in first.values()), default=1.0)
    scale = torch.tensor([largest], dtype=torch.float64)
    gradients = {name: torch.cat([g.double().flatten(), scale]) for name, g in first.items()}
    return {**losses, **gradients, **floating}


def courses_of_ranks(
    runs: SmallRuns, size: int, folder: Path, limit_s: float = LIMIT_S
) -> list[Tensors]:
    """What each of several processes found. Raises as `on_ranks` does. folder: for what they leave.
    limit_s: seconds that they may take."""

    def of_rank(world: World) -> Mapping[str, Tensor]:
        return course(runs.training(torch.float64, world))

    return on_ranks(of_rank, size, folder, plugin_module(runs.subject.slot), limit_s)
