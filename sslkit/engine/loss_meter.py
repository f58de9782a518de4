"""The training loss, the gradient's norm and speed between log steps; nothing is read from the
device before them, or before a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sslkit.parallel.world import World


class NotFiniteError(Exception):
    """The loss or the gradient of a step is not finite. `engine.failure` finds out why."""

    def __init__(self, step: int, loss: float, grad_norm: float) -> None:
        """step: counted from 1."""
        super().__init__(step, loss, grad_norm)
        self.step = step
        self.loss = loss
        self.grad_norm = grad_norm

    @property
    def symptom(self) -> str:
        """What was seen, in a few words."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return f"the norm of the gradient is {self.grad_norm}"


class NotFiniteOnAnotherRankError(NotFiniteError):
    """This rank's numbers are finite, and another one's are not."""

    @property
    def symptom(self) -> str:
        return "the loss or the gradient of another rank is not finite"


class LossMeter:
    """Collects loss and gradient norm of each step.

    The losses since the last log step are part of a checkpoint, so that a resumed run logs what an
    uninterrupted one would."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        """Gradient norms of the steps that `check` has not seen."""
        self.last_loss: Tensor | float = math.nan
        """Loss of the last step."""
        self.last_norm: Tensor | float = math.nan
        """Gradient norm of the last step."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begins to measure speed anew, for example after an evaluation."""
        self._since = time.perf_counter()
        self._images = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what is no training, such as saving: its time does not count."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def add(self, loss: Tensor, grad_norm: Tensor, images: int) -> None:
        """One step. grad_norm: of the whole gradient, before clipping, a scalar. Makes no
        synchronisation with the device."""
        self.last_loss = loss.detach()
        self.losses.append(self.last_loss)
        self.norms.append(grad_norm)
        self.last_norm = grad_norm
        self._images += images

    def check(self, step: int, overflows: Callable[[], bool] = lambda: False) -> None:
        """Raises NotFiniteError for the first step, among those it has not seen, whose loss or
        gradient is not finite on any rank. step: the last one added, counted from 1. overflows:
        whether such a gradient is only to be left out, as float16 does with one that its scale has
        made so."""
        norms, self.norms = self.norms, []
        if not norms:
            return
        found = self._first_odd(norms, step - len(norms) + 1, overflows)
        if self._world.any(found is not None):
            raise found or NotFiniteOnAnotherRankError(step, math.nan, math.nan)

    def _first_odd(
        self, norms: list[Tensor], first_step: int, overflows: Callable[[], bool]
    ) -> NotFiniteError | None:
        losses = _read(self.losses[-len(norms) :])
        for step, (loss, norm) in enumerate(zip(losses, _read(norms), strict=True), first_step):
            if not math.isfinite(loss) or not (math.isfinite(norm) or overflows()):
                return NotFiniteError(step, loss, norm)
        return None

    def flush(self) -> tuple[float, float, float]:
        """Since the last flush: mean loss, images per second, seconds."""
        seconds = time.perf_counter() - self._since
        # Averaged on the CPU: an MPS device has no float64.
        loss = torch.stack(self.losses).cpu().double().mean().item() if self.losses else math.nan
        speed = self._images / seconds
        self.losses = []
        self.restart_clock()
        return loss, speed, seconds

    def state_dict(self) -> dict[str, Any]:
        """What has been collected since the last log step."""
        return {"losses": torch.stack(self.losses).cpu() if self.losses else torch.empty(0)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores what `state_dict` gave."""
        self.losses = list(state["losses"].to(device))
        self.norms = []


def _read(scalars: list[Tensor]) -> list[float]:
    if len(scalars) == 1:  # each step, on a CPU
        return [scalars[0].item()]
    values: list[float] = torch.stack(scalars).tolist()
    return values
