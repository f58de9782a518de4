"""The learning rate of MoCo v1: constant, with drops at given epochs."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, model_validator

from sslkit.api import ComponentConfig, Progress, Schedule


class MultiStep(Schedule):
    """The factor is `gamma` to the power of the number of milestones that are reached."""

    class Config(ComponentConfig):
        milestones: tuple[PositiveFloat, ...] = (120, 160)
        """Epochs at which the factor drops, rising."""
        gamma: float = Field(default=0.1, gt=0.0, le=1.0)
        """What each drop multiplies the factor by."""

        @model_validator(mode="after")
        def _rising(self) -> Self:
            if list(self.milestones) != sorted(set(self.milestones)):
                raise ValueError("milestones: list the epochs once each, in rising order")
            return self

    config: Config

    def factor(self, progress: Progress) -> float:
        reached = sum(progress.epoch >= milestone for milestone in self.config.milestones)
        return self.config.gamma**reached
