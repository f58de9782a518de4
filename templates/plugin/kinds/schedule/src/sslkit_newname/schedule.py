"""Warm-up, plateau, fall (Hägele et al. 2024, arXiv 2405.18392).

Step k is the step that follows k finished ones; the run has K steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from sslkit.api import ComponentConfig, Progress, RunFacts, Schedule


class NewName(Schedule):
    """k / warm-up at first, then 1, and over the last part of the run a fall to 0 at k = K.

    With d the part of the fall that is done, the factor is 1 - d (`linear`) or 1 - sqrt(d)
    (`sqrt`).
    """

    class Config(ComponentConfig):
        warmup_epochs: float = Field(default=0.0, ge=0.0)
        """Epochs of linear warm-up from 0; fractions are allowed. Counted per step."""
        cooldown: float = Field(default=0.2, ge=0.0, le=1.0)
        """Part of the run over which the factor falls."""
        shape: Literal["linear", "sqrt"] = "sqrt"
        """How it falls."""

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        epochs = facts.total_steps / facts.steps_per_epoch
        plateau = (1.0 - config.cooldown) * epochs
        if config.warmup_epochs > plateau:
            yield (
                "warmup_epochs",
                f"{config.warmup_epochs:g} of {epochs:g} epochs reach into the fall, which begins "
                f"after {plateau:g}: shorten one of them",
            )

    def factor(self, progress: Progress) -> float:
        step, config = progress.step, self.config
        warmup = config.warmup_epochs * progress.steps_per_epoch
        if step < warmup:
            return step / warmup
        fall = config.cooldown * progress.total_steps
        left = progress.total_steps - step
        if left >= fall:
            return 1.0
        done = min(1.0 - left / fall, 1.0)
        return 1.0 - (done if config.shape == "linear" else math.sqrt(done))
