"""What a schedule promises: a factor that follows from its configuration and the step alone."""

from __future__ import annotations

import random as python_random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from sslkit.api import Progress, Schedule
from sslkit.api.schedules import checked_factor

from .any_facts import FactsLaws
from .laws import law, refuse

_RUNS = ((1, 1), (2, 1), (7, 3), (10, 100), (1000, 50))
"""Steps of a run and of its epochs; the fourth ends within its first epoch."""
_LONG = Progress(0, 1000, 50)
_THREADS = 8
_HOUR_S = 3600.0
_CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


class ScheduleLaws(FactsLaws):
    """The laws of `Schedule`."""

    kind = "schedule"

    @law("return a float from 0 up for every step, the one after the last included")
    def factors_are_finite_and_not_negative(self) -> str:
        """In a run of any length, be it a single step, and at its end the factor is a finite number
        that is not negative."""
        factors: list[float] = []
        for total, per_epoch in _RUNS:
            schedule = self._made()
            run = [Progress(step, total, per_epoch) for step in range(total + 1)]
            factors = [checked_factor(schedule, progress) for progress in run]
        return (
            f"{factors[0]:.4g} in the first of {_LONG.total_steps} steps, {max(factors):.4g} at "
            f"the most, {factors[-2]:.4g} in the last"
        )

    @law(
        "compute it from self.config and progress alone: no clock, no random numbers, nothing that "
        "classes or modules hold",
        needs=("factors-are-finite-and-not-negative",),
    )
    def factors_follow_from_configuration_and_step(self) -> None:
        """Two schedules of the same configuration have the same factors, at any time of the day and
        whatever the random numbers."""
        steps = _some_steps()
        one = [self._made().factor(progress) for progress in steps]
        with _other_random_numbers():
            drawn = [self._made().factor(progress) for progress in steps]
        with _an_hour_later():
            later = [self._made().factor(progress) for progress in steps]
        cause = "an hour later" if drawn == one else "of another one"
        other = later if drawn == one else drawn
        for progress, here, there in zip(steps, one, other, strict=True):
            refuse(here != there, f"{_factor_after(progress, here)}, and {there!r} {cause}")

    @law(
        "compute the factor of a step from progress, and keep nothing between calls",
        needs=("factors-follow-from-configuration-and-step",),
    )
    def it_has_no_memory(self) -> None:
        """Asked in any order and any number of times, it gives the factors that it gives when asked
        once for each step, from the first to the last: so it does after a resume, too."""
        steps = _some_steps()
        forward, backward = self._made(), self._made()
        ascending = [forward.factor(progress) for progress in steps]
        descending = [backward.factor(progress) for progress in reversed(steps)][::-1]
        again = [forward.factor(progress) for progress in steps]
        resumed = [self._made().factor(progress) for progress in steps]
        ways = {"asked again": again, "asked backwards": descending, "after a resume": resumed}
        for way, found in ways.items():
            for progress, here, there in zip(steps, ascending, found, strict=True):
                refuse(here != there, f"{_factor_after(progress, here)}, and {there!r} {way}")

    @law(
        "work on local variables alone",
        needs=("factors-follow-from-configuration-and-step", "it-has-no-memory"),
    )
    def threads_may_ask_it(self) -> None:
        """Asked by several threads at once, it gives each the factor of its step."""
        steps, schedule = _some_steps(), self._made()
        alone = [schedule.factor(progress) for progress in steps]

        def asked(_: int) -> Sequence[float]:
            return [schedule.factor(progress) for progress in steps]

        with ThreadPoolExecutor(_THREADS) as threads:
            found = list(threads.map(asked, range(_THREADS)))
        odd = sum(each != alone for each in found)
        refuse(odd, f"{odd} of {_THREADS} threads had other factors than one alone")

    def notes(self) -> Iterator[str]:
        """Where a factor is above 1, which a learning rate alone may follow."""
        schedule = self._made()
        highest = max(
            schedule.factor(Progress(step, _LONG.total_steps, _LONG.steps_per_epoch))
            for step in range(_LONG.total_steps)
        )
        if highest > 1.0:
            yield (
                f"the factor comes to {highest:.4g}: a learning rate goes beyond its `lr`, and any "
                "other number beyond its `start`"
            )

    def _made(self) -> Schedule:
        made: Schedule = self.subject.slot.build()
        return made


def _factor_after(progress: Progress, factor: float) -> str:
    return f"after {progress.step} of {progress.total_steps} steps the factor is {factor!r}"


def _some_steps() -> list[Progress]:
    """Steps of a short and of a long run."""
    total, per_epoch = _LONG.total_steps, _LONG.steps_per_epoch
    long = [Progress(step, total, per_epoch) for step in (*range(0, 60, 7), *range(99, 1001, 53))]
    return [*long, *(Progress(step, 7, 3) for step in range(8))]


@contextmanager
def _other_random_numbers() -> Iterator[None]:
    states = python_random.getstate(), np.random.get_state()  # noqa: NPY002
    python_random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    try:
        yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _an_hour_later() -> Iterator[None]:
    """The clocks of `time` go an hour fast; those that a module has taken by name are as they are,
    and go on between two calls."""
    clocks = [patch.object(time, name, _fast(getattr(time, name))) for name in _CLOCKS]
    for clock in clocks:
        clock.start()
    try:
        yield
    finally:
        for clock in clocks:
            clock.stop()


def _fast(clock: object) -> object:
    return lambda: clock() + _HOUR_S  # type: ignore[operator]
