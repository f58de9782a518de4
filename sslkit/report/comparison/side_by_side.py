"""What a comparison shows: arms with their runs, and the statistics over seeds. Plain values: they
are read and computed in `sslkit.workflows.compare`, and drawn and written down here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sslkit.evaluation.statistics import Interval
from sslkit.recipe import Recipe, recipe_hash

Match = Literal["epochs", "time"]
"""The budget that arms share: images seen, or seconds of training."""
SUBJECTS = ("pixels", "raw", "untrained")
"""The baselines; only one of the first two is there, see `SampleSpec.raw`."""


@dataclass(frozen=True)
class Point:
    """One value of a learning curve."""

    step: int
    epoch: float
    seconds: float
    """Training time up to this step, evaluation not counted."""
    value: float


@dataclass(frozen=True)
class Score:
    """A main metric after the last epoch, and what the baselines reach."""

    trained: float
    pixels: float | None = None
    raw: float | None = None
    untrained: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """A finished run, as far as a comparison needs it."""

    path: Path
    recipe: Recipe
    hash: str
    """What the recipe says and the files that it starts from, see `experiment_hash`."""
    data: Mapping[str, str]
    """Split -> fingerprint."""
    steps: int
    epochs: float
    images_seen: int
    """Optimiser steps times the batch size; 0 for weights that were only measured."""
    scores: Mapping[str, Score]
    """`eval/knn/top1` -> values after the last epoch, for the main metrics of every evaluator."""
    curves: Mapping[str, Sequence[Point]]
    """Metric -> its values during the run, the last one included."""
    training_seconds: float
    evaluation_seconds: float | None
    images_per_second: float | None
    """Median over log steps."""
    peak_memory_mb: float | None
    machine: str
    """Device and processor or accelerator."""
    versions: Mapping[str, str]
    """Distributions that change numbers -> version."""

    @property
    def identity(self) -> tuple[str, str]:
        """What repetitions of an experiment share."""
        return self.recipe.name, self.hash

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def last(self, metric: str) -> Point:
        """What it came to after the last epoch."""
        value = self.scores[metric].trained
        return Point(self.steps, self.epochs, self.training_seconds, value)


@dataclass(frozen=True)
class Arm:
    """The runs of one experiment, which differ in their seed alone."""

    label: str
    records: Sequence[RunRecord]
    """One for each seed, ascending."""
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
    """One for each seed."""
    mean: Interval
    against_baseline: Interval | None
    """Minus the baseline arm, paired by seed; None for that arm, or where no seed is shared."""
    pairs: int
    against: Mapping[str, Interval]
    """Name in `SUBJECTS` -> minus this baseline, paired by run; absent where not measured."""
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
    """Several arms under the same conditions."""

    name: str
    arms: Sequence[Arm]
    baseline: str
    match: Match
    time_limit: float | None
    """Seconds of training at which scores are read: those of the fastest run; None where each run
    is read at its end."""
    time_tolerance: float
    """Where time is matched: by what part of the time limit a run may go beyond it."""
    metrics: Sequence[str]
    """The main metrics that some run has, in the order of the evaluators."""
    rows: Sequence[Row]
    """Every main metric of every arm; arms of one metric stand together."""
    costs: Sequence[Cost]
    notes: Sequence[str] = ()
    """What a reader must know beside the numbers, one sentence each."""

    @property
    def raw(self) -> Literal["pixels", "raw"]:
        """Name of the baseline without a network: see `SampleSpec.raw`."""
        return "raw" if any("raw" in row.against for row in self.rows) else "pixels"

    @property
    def noun(self) -> str:
        """What the arms were trained on: see `SampleSpec.noun`."""
        return "sample" if self.raw == "raw" else "image"

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
                    "recipe_hash": recipe_hash(arm.records[0].recipe) if arm.records else None,
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
            "notes": list(self.notes),
        }


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
