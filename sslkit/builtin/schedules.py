"""Schedules: cosine, constant and multistep, all with linear warm-up, and linear.

Step k is the step that follows k finished ones. During warm-up over K_w steps the factor is
k / K_w, so the first step of a warmed-up run has learning rate 0 and step K_w has the peak. A
number between two ends, such as a teacher's momentum, is at its `start` where the factor is 1 and
at its `end` where it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from sslkit.api import ComponentConfig, Progress, RunFacts, Schedule


class Cosine(Schedule):
    """After warm-up f + (1 - f) (1 + cos(pi (k - K_w) / (K - K_w))) / 2: 1 at k = K_w, and f, the
    `final_factor`, at the end, k = K.

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts."""

    class Config(ComponentConfig):
        warmup_epochs: float = Field(default=0.0, ge=0.0)
        """Epochs of linear warm-up from 0; fractions are allowed. Counted per step."""
        final_factor: float = Field(default=0.0, ge=0.0, le=1.0)
        """The factor that the cosine approaches."""
        update: Literal["step", "epoch"] = "step"
        """`epoch` keeps the cosine constant within an epoch (MoCo v2, SimSiam)."""

    config: Config

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        return _endless_warmup(config.warmup_epochs, facts)

    def factor(self, progress: Progress) -> float:
        config, step = self.config, progress.step
        warmup_steps = config.warmup_epochs * progress.steps_per_epoch
        if step < warmup_steps:
            return step / warmup_steps
        if config.update == "epoch":
            step -= step % progress.steps_per_epoch
        length = progress.total_steps - warmup_steps
        done = min(max((step - warmup_steps) / length, 0.0), 1.0) if length > 0 else 1.0
        half_wave = 0.5 * (1.0 + math.cos(math.pi * done))
        return config.final_factor + (1.0 - config.final_factor) * half_wave


class Linear(Schedule):
    """1 - k / K_e, and 0 from the end of `epochs` on: a learning rate that falls to 0, or a number
    on its way from `start` to `end`."""

    class Config(ComponentConfig):
        epochs: float | None = Field(default=None, gt=0.0)
        """Epochs until the end is reached; fractions are allowed. null: those of the run. Counted
        per step."""

    config: Config

    def factor(self, progress: Progress) -> float:
        epochs = self.config.epochs
        length = progress.total_steps if epochs is None else epochs * progress.steps_per_epoch
        return max(1.0 - progress.step / length, 0.0)


class Constant(Schedule):
    """1 after warm-up."""

    class Config(ComponentConfig):
        warmup_epochs: float = Field(default=0.0, ge=0.0)
        """Epochs of linear warm-up from 0; fractions are allowed. Counted per step."""

    config: Config

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        return _endless_warmup(config.warmup_epochs, facts)

    def factor(self, progress: Progress) -> float:
        return _warmed_up(self.config.warmup_epochs, progress)


class MultiStep(Schedule):
    """After warm-up `gamma` to the power of the number of milestones that are reached: a learning
    rate that drops at given epochs."""

    class Config(ComponentConfig):
        milestones: tuple[PositiveFloat, ...] = (120, 160)
        """Epochs at which the factor drops, rising."""
        gamma: float = Field(default=0.1, gt=0.0, le=1.0)
        """What each drop multiplies the factor by."""
        warmup_epochs: float = Field(default=0.0, ge=0.0)
        """Epochs of linear warm-up from 0; fractions are allowed. Counted per step."""

        @model_validator(mode="after")
        def _rising(self) -> Self:
            if list(self.milestones) != sorted(set(self.milestones)):
                raise ValueError("milestones: list the epochs once each, in rising order")
            return self

    config: Config

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        return _endless_warmup(config.warmup_epochs, facts)

    def factor(self, progress: Progress) -> float:
        reached = sum(progress.epoch >= milestone for milestone in self.config.milestones)
        return _warmed_up(self.config.warmup_epochs, progress) * self.config.gamma**reached


def _warmed_up(warmup_epochs: float, progress: Progress) -> float:
    """The factor of a linear warm-up: k / K_w, and 1 from then on."""
    warmup_steps = warmup_epochs * progress.steps_per_epoch
    return min(progress.step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0


def _endless_warmup(warmup_epochs: float, facts: RunFacts) -> Iterator[tuple[str, str]]:
    run = facts.total_steps / facts.steps_per_epoch
    if warmup_epochs > 0.0 and warmup_epochs >= run:
        yield (
            "warmup_epochs",
            f"a warm-up of {warmup_epochs:g} epochs lasts as long as the run, {run:g} epochs, so "
            "that the factor never reaches 1; shorten it or train longer",
        )
