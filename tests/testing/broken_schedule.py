"""Schedules that break one law each."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from pydantic import PositiveFloat

from sslkit.api import ComponentConfig, Progress, RunFacts, Schedule


class CountsCalls(Schedule):
    """Falls with every call, as schedulers of torch do."""

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        self._calls = 0

    def factor(self, progress: Progress) -> float:
        self._calls += 1
        return 1.0 / self._calls


class LowersOnce(Schedule):
    """Remembers the lowest factor: right from the first step to the last, wrong in any other
    order."""

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        self._lowest = 1.0

    def factor(self, progress: Progress) -> float:
        self._lowest = min(self._lowest, 1.0 - progress.fraction)
        return self._lowest


class FollowsTheClock(Schedule):
    """Falls with the hours that training takes."""

    class Config(ComponentConfig):
        hours: PositiveFloat = 24.0
        """Hours until the rate is halved."""

    began = time.time()

    def factor(self, progress: Progress) -> float:
        hours = (time.time() - self.began) / 3600.0
        return float(0.5 ** (hours / self.config.hours))


class DrawsNumbers(Schedule):
    """Warm restarts at random."""

    def factor(self, progress: Progress) -> float:
        return random.random()


class CountsInTheClass(Schedule):
    """Counts the calls of all schedules of its kind."""

    calls: ClassVar[itertools.count[int]] = itertools.count()

    def factor(self, progress: Progress) -> float:
        return 1.0 / (1 + next(self.calls))


class CountsOnLabels(Schedule):
    """Takes for granted that data have labels, in a warning."""

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if facts.num_images / len(facts.class_sizes) < 1.0:
            yield "", "few images of each class"

    def factor(self, progress: Progress) -> float:
        return 1.0


class NamesNoField(Schedule):
    """Warns of a field that it has not."""

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield "warmup", "too long"

    def factor(self, progress: Progress) -> float:
        return 1.0


class DividesByWhatIsLeft(Schedule):
    """Has no factor at the end, nor in a run of one step."""

    def factor(self, progress: Progress) -> float:
        return 1.0 / (progress.total_steps - progress.step) - 1.0 / progress.total_steps


class KeepsItsStep(Schedule):
    """Keeps the step in an attribute while it waits for others, as for a lock or a file."""

    def factor(self, progress: Progress) -> float:
        self._progress = progress
        time.sleep(1e-4)
        return 1.0 - self._progress.fraction


class TakesACallable(Schedule):
    """Takes what no recipe can hold, and no editor complete."""

    class Config(ComponentConfig):
        shape: Callable[[float], float] | None = None
        """Of the fall, from 1 at 0 to 0 at 1."""

    def factor(self, progress: Progress) -> float:
        return 1.0 - progress.fraction


class GoesBelowZero(Schedule):
    """Goes on falling after its epochs."""

    def factor(self, progress: Progress) -> float:
        return 1.0 - progress.epoch / 5.0
