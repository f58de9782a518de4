"""What is compared, and how it is timed: arms in one process, in the order A B B A.

An arm is a way to do a piece of work. All arms of a group do the same work on the same input, so
that only ratios of their speeds are read: the machine may be slow or shared, and it is so for all.

    def setup() -> Callable[[], object]:      # untimed: build, move to the device
        transform, images = ...
        return lambda: [transform(image) for image in images]      # timed: one call

    Arm("lightly", of_calls(setup), work=512, unit="views")
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .results import ArmResult


class Unavailable(Exception):
    """Raised by a setup: this arm cannot run here. The message, which says why, is kept."""


class Run(Protocol):
    """An arm that is set up. Where it has `facts`, a mapping, they go into the results."""

    def block(self) -> float:
        """Does the arm's work once and returns how many seconds that took."""

    def close(self) -> None:
        """Ends worker processes and lets go of memory."""


@dataclass(frozen=True)
class Arm:
    """One of the ways that are compared."""

    name: str
    setup: Callable[[], Run]
    """Untimed; its seconds are reported apart. Raises Unavailable."""
    work: float
    """How much a block works through, in `unit`."""
    unit: str = "images"
    warmups: int = 1
    """Blocks before the first round, after a first one, which may compile."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What a reader has to know of this arm: precision, workers, ..."""


def of_calls(
    setup: Callable[[], Callable[[], object]], calls: int = 1, device: torch.device | None = None
) -> Callable[[], Run]:
    """The setup of an arm whose block is `calls` calls of what `setup` returns."""
    return lambda: Calls(setup(), calls, device or torch.device("cpu"))


class Calls:
    """A block is so many calls of a function, and waits for the device at its ends only."""

    def __init__(self, function: Callable[[], object], calls: int, device: torch.device) -> None:
        self.function: Callable[[], object] | None = function
        self.calls = calls
        self.device = device

    def block(self) -> float:
        assert self.function is not None
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(self.calls):
            self.function()
        synchronize(self.device)
        return time.perf_counter() - start

    def close(self) -> None:
        self.function = None


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Plan:
    """How long a group is measured."""

    budget_s: float = 60.0
    """No further round begins after so many seconds of rounds."""
    min_rounds: int = 6
    """Rounds that are measured however long they take: with 6, the range of all ratios covers the
    true median with 97 %."""
    max_rounds: int = 24
    max_warmups: int = 1
    """No arm has more warm-up blocks than that, after its first."""


def measure(arms: Sequence[Arm], plan: Plan) -> list[ArmResult]:
    """Times all arms in turns: forwards in one round, backwards in the next.

    Arms are set up and warmed up one after the other before the first round; the seconds of that
    (compilation included) are kept apart. An arm that is unavailable keeps its reason and takes no
    part."""
    results, runs = [], []
    for arm in arms:
        result, run = _warmed_up(arm, plan)
        results.append(result)
        if run is not None:
            runs.append((result, run))
    gc.collect()
    gc.freeze()  # so that collecting before each block, outside its clock, takes no time
    began, rounds = time.perf_counter(), 0
    while runs and rounds < plan.max_rounds:
        if rounds >= plan.min_rounds and time.perf_counter() - began > plan.budget_s:
            break
        for result, run in runs if rounds % 2 == 0 else reversed(runs):
            gc.collect()
            result.seconds.append(run.block())
        rounds += 1
    gc.unfreeze()
    for result, run in runs:
        result.facts |= getattr(run, "facts", {})
        run.close()
    return results


def _warmed_up(arm: Arm, plan: Plan) -> tuple[ArmResult, Run | None]:
    result = ArmResult(arm.name, arm.work, arm.unit, dict(arm.settings))
    start = time.perf_counter()
    try:
        run = arm.setup()
    except Unavailable as reason:
        result.unavailable = str(reason)
        return result, None
    result.setup_s = time.perf_counter() - start
    start = time.perf_counter()
    run.block()
    result.first_block_s = time.perf_counter() - start
    for _ in range(min(arm.warmups, plan.max_warmups)):
        run.block()
    return result, run
