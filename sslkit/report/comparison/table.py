"""Arms, and the statistics of their runs over seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from sslkit.evaluation.statistics import Interval, mean_interval, paired_difference
from sslkit.report.final_results import bounds

from .agreement import Match
from .record import Point, RunRecord

_ROUNDING = 1e-9
SUBJECTS = ("pixels", "untrained")


@dataclass(frozen=True)
class Arm:
    """The runs of one experiment, which differ in their seed alone."""

    label: str
    records: Sequence[RunRecord]
    """By seed, ascending."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Seed -> why its run has no result."""

    @cached_property
    def by_seed(self) -> dict[int, RunRecord]:
        return {record.seed: record for record in self.records}


@dataclass(frozen=True)
class Row:
    """One main metric of one arm over its seeds."""

    arm: str
    metric: str
    """`eval/knn/top1`."""
    seeds: Sequence[int]
    values: Sequence[float]
    """By seed."""
    mean: Interval
    against_baseline: Interval | None
    """Minus the baseline arm, paired by seed; None for that arm, or where no seed is shared."""
    pairs: int
    against: Mapping[str, Interval]
    """`pixels`, `untrained` -> minus this baseline, paired by run; absent where not measured."""
    epochs: float
    """After how many epochs it was measured, the mean over seeds."""
    seconds: float
    """After how many seconds of training, the mean over seeds."""


@dataclass(frozen=True)
class Cost:
    """What the runs of an arm took, the mean over seeds."""

    arm: str
    runs: int
    images_seen: int
    training_seconds: float
    evaluation_seconds: float | None
    images_per_second: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Comparison:
    """Several arms under the same conditions; see `sslkit.report.comparison.agreement`."""

    name: str
    arms: Sequence[Arm]
    baseline: str
    match: Match = "epochs"
    time_tolerance: float = 0.1
    """For matched time: by what part of the time limit a run may go beyond it."""
    remarks: Sequence[str] = ()
    """Further notes, on how the runs were made and on what could not be drawn."""

    @cached_property
    def time_limit(self) -> float | None:
        """Seconds of training at which accuracies are read: those of the fastest run; None where
        each run is read at its end."""
        if self.match == "epochs":
            return None
        return min(record.training_seconds for arm in self.arms for record in arm.records)

    @cached_property
    def rows(self) -> list[Row]:
        """Every main metric of every arm; arms of one metric stand together."""
        found = [row for metric in self.metrics for arm in self.arms
                 if (row := self._row(arm, metric)) is not None]  # fmt: skip
        return found

    @cached_property
    def metrics(self) -> list[str]:
        """The main metrics that some run has, in the order of the protocols."""
        every = (record.scores for arm in self.arms for record in arm.records)
        return list(dict.fromkeys(key for scores in every for key in scores))

    @cached_property
    def costs(self) -> list[Cost]:
        return [_cost(arm) for arm in self.arms if arm.records]

    def points(self, arm: Arm, metric: str) -> dict[int, Point]:
        """Seed -> the last value within the budget, of the seeds that have one."""
        measured = [record for record in arm.records if metric in record.scores]
        if self.time_limit is None:
            return {record.seed: record.last(metric) for record in measured}
        found = {}
        for record in measured:
            points = [*record.curves.get(metric, ()), record.last(metric)]
            latest = self.time_limit * (1 + self.time_tolerance + _ROUNDING)
            inside = [point for point in points if point.seconds <= latest]
            if inside:
                found[record.seed] = inside[-1]
        return found

    def _row(self, arm: Arm, metric: str) -> Row | None:
        points = self.points(arm, metric)
        measured = [record for record in arm.records if metric in record.scores]
        if not measured or len(points) < len(measured):
            return None
        values = {seed: point.value for seed, point in points.items()}
        baseline = next(other for other in self.arms if other.label == self.baseline)
        theirs = {seed: point.value for seed, point in self.points(baseline, metric).items()}
        shared = [] if arm.label == self.baseline else sorted(values.keys() & theirs.keys())
        return Row(
            arm=arm.label,
            metric=metric,
            seeds=list(values),
            values=list(values.values()),
            mean=mean_interval(list(values.values()), bounds=bounds(metric)),
            against_baseline=paired_difference(
                [values[seed] for seed in shared],
                [theirs[seed] for seed in shared],
                bounds=bounds(metric, difference=True),
            )
            if shared
            else None,
            pairs=len(shared),
            against={
                subject: difference
                for subject in SUBJECTS
                if (difference := _against(subject, measured, metric, values)) is not None
            },
            epochs=fmean(point.epoch for point in points.values()),
            seconds=fmean(point.seconds for point in points.values()),
        )

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Everything except the curves; None stands for what is not known, such as the interval
        of a single value. folder: what the paths of runs count from."""
        return {
            "name": self.name,
            "baseline": self.baseline,
            "match": self.match,
            "time_limit_seconds": self.time_limit,
            "time_tolerance": self.time_tolerance if self.match == "time" else None,
            "arms": [
                {
                    "label": arm.label,
                    "recipe_hash": arm.records[0].hash if arm.records else None,
                    "runs": {
                        str(record.seed): os.path.relpath(record.path, folder)
                        for record in arm.records
                    },
                    "failed": {str(seed): reason for seed, reason in arm.failed.items()},
                }
                for arm in self.arms
            ],
            "intervals_over": "seeds",
            "accuracies": [_row_json(row) for row in self.rows],
            "costs": [vars(cost) for cost in self.costs],
        }


def _against(
    subject: str, records: Sequence[RunRecord], metric: str, values: Mapping[int, float]
) -> Interval | None:
    known = {
        record.seed: value
        for record in records
        if (value := getattr(record.scores[metric], subject)) is not None
    }
    if len(known) < len(values):
        return None
    return paired_difference(
        list(values.values()),
        [known[seed] for seed in values],
        bounds=bounds(metric, difference=True),
    )


def _cost(arm: Arm) -> Cost:
    def mean(field_name: str) -> float | None:
        values = [getattr(record, field_name) for record in arm.records]
        return fmean(values) if all(value is not None for value in values) else None

    return Cost(
        arm=arm.label,
        runs=len(arm.records),
        images_seen=arm.records[0].images_seen,
        training_seconds=fmean(record.training_seconds for record in arm.records),
        evaluation_seconds=mean("evaluation_seconds"),
        images_per_second=mean("images_per_second"),
        peak_memory_mb=mean("peak_memory_mb"),
    )


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "arm": row.arm,
        "metric": row.metric,
        "n": len(row.values),
        "epochs": row.epochs,
        "training_seconds": row.seconds,
        "values": {str(seed): value for seed, value in zip(row.seeds, row.values, strict=True)},
        **_interval_json(row.mean),
        "minus_baseline": row.against_baseline
        and {**_interval_json(row.against_baseline), "pairs": row.pairs},
        **{f"minus_{name}": _interval_json(found) for name, found in row.against.items()},
    }


def _interval_json(interval: Interval) -> dict[str, float | None]:
    low, high = interval.low, interval.high
    known = not math.isnan(low)
    return {"mean": interval.mean, "low": low if known else None, "high": high if known else None}
