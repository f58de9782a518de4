"""Where the time of a training step goes: kernels, gaps between them, waits of the host."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sslkit.engine.loop import train

from .arms import Unavailable, synchronize
from .cases import Case, Mode, make_recipe
from .options import Options
from .ours import TrainRun, scratch
from .results import ArmResult, Group
from .steps import cases_for, release

_TOP = 15
_NAME = 90
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch")


@dataclass(frozen=True)
class Span:
    """Something that ran: a kernel or copy on a GPU, an operation on a CPU. Times in us."""

    name: str
    start: float
    end: float
    own: float
    """Of its time, what no other span inside it accounts for."""


def run_profile(options: Options) -> Iterator[Group]:
    """A group for each mode of the first case, or of those that were asked for."""
    cases = cases_for(options)
    for case in cases if options.cases else cases[:1]:
        for mode in case.modes:
            yield _profile(case, mode, options)
            release()


def _profile(case: Case, mode: Mode, options: Options) -> Group:
    group = Group("profile", f"Profile of a step, {mode}: {case.title}", [])
    runs_dir = scratch()
    try:
        images = case.images(options.data_dir)
        recipe = make_recipe(case, "same settings", images, runs_dir, options, mode)
        run = TrainRun(recipe, case.steps, case.lead_steps)
        try:
            run.block()
            spans, calls = _record(run, options)
        finally:
            run.close()
    except Unavailable as reason:
        group.arms.append(ArmResult("profile", 1.0, "steps", unavailable=str(reason)))
        return group
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)
    steps = run.clock.steps + run.clock.lead_steps
    group.facts = {"steps": steps, "data": images.description, **_totals(spans, calls, steps)}
    group.note = (
        "Shares are of the time in which the device computes; idle_share is the time in which it "
        "does not, of the time from the first to the last of what it did. The profiler slows the "
        "host down, so gaps are at most this large."
    )
    group.arms += _ranking(spans, steps)
    return group


def _record(run: TrainRun, options: Options) -> tuple[list[Span], list[str]]:
    """(what the device did in a block, the names of the calls of the host) under the profiler."""
    activities = [ProfilerActivity.CPU]
    if options.on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        train(run.experiment.training, run.clock.begin())
        synchronize(options.device)
    events = recorded.events() or ()
    host = [event for event in events if event.device_type == DeviceType.CPU]
    if options.on_gpu:
        worked = [event for event in events if event.device_type == DeviceType.CUDA]
    else:
        worked = [event for event in host if "::" in event.name]
    spans = [
        Span(
            event.name[:_NAME],
            event.time_range.start,
            event.time_range.end,
            event.time_range.elapsed_us() if options.on_gpu else event.self_cpu_time_total,
        )
        for event in worked
    ]
    return spans, [event.name for event in host]


def _totals(spans: Sequence[Span], calls: Sequence[str], steps: int) -> dict[str, Any]:
    """Milliseconds of a step, the part of them in which the device was idle, launches, waits."""
    if not spans:
        return {}
    whole = max(s.end for s in spans) - min(s.start for s in spans)
    return {
        "milliseconds_per_step": whole / steps / 1e3,
        "idle_share": 1.0 - busy_time(spans) / whole,
        "operations_per_step": len(spans) / steps,
        "launches_per_step": sum(name in _LAUNCHES for name in calls) / steps,
        "waits_per_step": sum(name in _WAITS for name in calls) / steps,
    }


def busy_time(spans: Iterable[Span]) -> float:
    """The time in which at least one of them ran."""
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda s: s.start):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total


def _ranking(spans: Sequence[Span], steps: int) -> list[ArmResult]:
    """What took most of the device's time, one row each, and the rest."""
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for span in spans:
        seconds[span.name] = seconds.get(span.name, 0.0) + span.own / 1e6
        calls[span.name] = calls.get(span.name, 0) + 1
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds, key=lambda name: -seconds[name])

    def row(title: str, names: Sequence[str]) -> ArmResult:
        facts = {
            "share": sum(seconds[name] for name in names) / total,
            "calls_per_step": sum(calls[name] for name in names) / steps,
        }
        return ArmResult(title, float(steps), "steps", facts=facts)

    rows = [row(name, [name]) for name in ranked[:_TOP]]
    rest = ranked[_TOP:]
    return [*rows, row(f"{len(rest)} others", rest)] if rest else rows
