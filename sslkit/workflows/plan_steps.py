"""The first steps of a run, taken and measured for a plan."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import count

import torch

from sslkit.api import Batch
from sslkit.engine.failure import refuse_odd_state
from sslkit.engine.loop import check_steps, checked_step
from sslkit.engine.training import Training

_COLD_STEPS = 2
"""The first steps, which allocate and compile, are not measured where there are others."""
MEASURED_STEPS = _COLD_STEPS + 6
"""How many are taken where they are measured."""
_LIMIT_S = 30.0
"""No step is begun after this time, once one is measured."""


@dataclass(frozen=True)
class Steps:
    """The first steps of a run."""

    first_loss: float
    seconds: list[float]
    """What each step took, data and optimiser included."""

    @property
    def warm(self) -> list[float]:
        """Without the cold ones, as far as there are others."""
        return self.seconds[min(_COLD_STEPS, len(self.seconds) - 1) :]


def take_steps(training: Training, number: int) -> Steps:
    """Takes the first steps of the run. Raises what `train` raises in them."""
    training.method.train()
    refuse_odd_state(training)
    seconds: list[float] = []
    first_loss = math.nan
    started = time.perf_counter()
    with closing(first_batches(training)) as batches:
        for _ in range(min(number, training.progress.total_steps)):
            begun = time.perf_counter()
            batch = next(batches)
            training.optimization.set_rules(training.progress)
            output, _ = checked_step(training, batch)
            _wait_for(training.compute.device)
            seconds.append(time.perf_counter() - begun)
            if training.progress.step == 0:
                first_loss = output.loss.item()
            training.progress = training.progress.next()
            if len(seconds) > _COLD_STEPS and time.perf_counter() - started > _LIMIT_S:
                break
    check_steps(training)
    refuse_odd_state(training)
    return Steps(first_loss, seconds)


def first_batches(training: Training) -> Generator[Batch, None, None]:
    """Those of the run, from its first epoch on."""
    for epoch in count():
        yield from training.loader.epoch(epoch)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
