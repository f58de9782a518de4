"""What the evaluation of a run cost, beside its training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sslkit.evaluation.results import COST, SuiteResult
from sslkit.runs.metrics_file import MetricLine


@dataclass(frozen=True)
class RunCost:
    """Seconds that a run spent; checkpoints, start-up and the report are not counted."""

    training: float
    """From the speeds that were logged."""
    evaluation: float
    """All evaluations, that of the baselines included."""
    parts: Mapping[str, float]
    """`features` and each evaluator -> seconds, the costliest first."""

    @property
    def share(self) -> float:
        """Evaluation as a part of both, 0 to 1; NaN where nothing was measured."""
        total = self.training + self.evaluation
        return self.evaluation / total if total > 0 else math.nan

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged with the last evaluation."""
        return {"perf/evaluation_share": self.share}

    def to_json(self) -> dict[str, Any]:
        """As `results.json` keeps it."""
        return {
            "training_seconds": self.training,
            "evaluation_seconds": self.evaluation,
            "evaluation_share": None if math.isnan(self.share) else self.share,
            "evaluation_parts": dict(self.parts),
        }

    def sentence(self) -> str:
        """The line under the table."""
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in self.parts.items())
        return (
            f"Evaluation took {self.share:.0%} of the run: {self.evaluation:.1f} s beside "
            f"{self.training:.1f} s of training ({parts})."
        )


def run_cost(
    lines: Sequence[MetricLine], last_step: int, batch_size: int, last: Iterable[SuiteResult]
) -> RunCost:
    """The cost of a run whose `metrics.jsonl` holds `lines`. last: the evaluations after the last
    step, `last_step`, which the log may hold or not."""
    evaluations = [line.metrics for line in lines if COST in line.metrics and line.step < last_step]
    evaluations += [result.cost for result in last]
    parts: dict[str, float] = {}
    for metrics in evaluations:
        for key, value in metrics.items():
            if key.startswith(f"{COST}_") and math.isfinite(value):
                name = key.removeprefix(f"{COST}_")
                parts[name] = parts.get(name, 0.0) + value
    return RunCost(
        training_clock(lines, batch_size)[-1][1],
        math.fsum(metrics[COST] for metrics in evaluations),
        dict(sorted(parts.items(), key=lambda item: -item[1])),
    )


def total_cost(results: Iterable[SuiteResult]) -> dict[str, float]:
    """The cost of several evaluations together, as metrics."""
    total: dict[str, float] = {}
    for result in results:
        for key, value in result.cost.items():
            total[key] = total.get(key, 0.0) + value
    return total


def training_clock(lines: Iterable[MetricLine], batch_size: int) -> list[tuple[int, float]]:
    """(step, seconds of training up to it) of each log step: images between log steps over the
    speed that was logged there. Evaluations and checkpoints are not counted."""
    clock = [(0, 0.0)]
    for line in lines:
        speed = line.metrics.get("perf/images_per_second", math.nan)
        before, seconds = clock[-1]
        if speed > 0.0 and math.isfinite(speed) and line.step > before:
            clock.append((line.step, seconds + (line.step - before) * batch_size / speed))
    return clock
