"""The training loss and speed between log steps; nothing is read from the device before them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslkit.errors import TrainingError


class Meter:
    """Collects the loss of each step and gives the mean since the last log step.

    What is collected is part of a checkpoint, so that a resumed run logs what an uninterrupted one
    would."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begins to measure speed anew, for example after an evaluation."""
        self._since = time.perf_counter()
        self._images = 0

    def add(self, loss: Tensor, images: int) -> None:
        """One step. Makes no synchronisation with the device."""
        self.losses.append(loss.detach())
        self._images += images

    def check(self, step: int, lr: float, advice: Callable[[], str]) -> None:
        """Raises TrainingError naming the first step whose loss is not finite. step: the last one
        added, counted from 1."""
        values = torch.stack(self.losses).tolist() if self.losses else []
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                bad = step - len(values) + 1 + offset
                raise TrainingError(
                    f"step {bad}: the loss is {value} at learning rate {lr:.4g}. {advice()}"
                )

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
