"""The statistics of a comparison: each arm over its seeds, against the baseline and its own
baselines, at the end or within a budget of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from sslkit.evaluation.statistics import Interval, mean_interval, paired_difference
from sslkit.report.comparison.side_by_side import (
    SUBJECTS,
    Arm,
    Comparison,
    Cost,
    Match,
    Point,
    Row,
    RunRecord,
)
from sslkit.report.final_results import bounds

from .notes import find_notes

_ROUNDING = 1e-9


def make_comparison(
    name: str,
    arms: Sequence[Arm],
    baseline: str,
    match: Match = "epochs",
    time_tolerance: float = 0.1,
) -> Comparison:
    """The arms side by side. baseline: the label of the arm that others are held against. match:
    the budget at which scores are read. time_tolerance: for matched time, by what part of the
    limit a run may go beyond it. There is at least one finished run."""
    limit = None
    if match == "time":
        limit = min(record.training_seconds for arm in arms for record in arm.records)
    every = (record.scores for arm in arms for record in arm.records)
    metrics = list(dict.fromkeys(key for scores in every for key in scores))
    latest = None if limit is None else limit * (1 + time_tolerance + _ROUNDING)
    held_against = next(arm for arm in arms if arm.label == baseline)
    rows = [row for metric in metrics for arm in arms
            if (row := _row(arm, metric, held_against, latest)) is not None]  # fmt: skip
    costs = [_cost(arm) for arm in arms if arm.records]
    found = Comparison(
        name=name, arms=arms, baseline=baseline, match=match, time_limit=limit,
        time_tolerance=time_tolerance, metrics=metrics, rows=rows, costs=costs,
    )  # fmt: skip
    return replace(found, notes=find_notes(found))


def points(arm: Arm, metric: str, latest: float | None) -> dict[int, Point]:
    """Seed -> the last value within the budget, of the seeds that have one. latest: the seconds of
    training that count; None for all."""
    measured = [record for record in arm.records if metric in record.scores]
    if latest is None:
        return {record.seed: record.last(metric) for record in measured}
    found = {}
    for record in measured:
        curve = [*record.curves.get(metric, ()), record.last(metric)]
        inside = [point for point in curve if point.seconds <= latest]
        if inside:
            found[record.seed] = inside[-1]
    return found


def _row(arm: Arm, metric: str, baseline: Arm, latest: float | None) -> Row | None:
    reached = points(arm, metric, latest)
    measured = [record for record in arm.records if metric in record.scores]
    if not measured or len(reached) < len(measured):
        return None
    values = {seed: point.value for seed, point in reached.items()}
    theirs = {seed: point.value for seed, point in points(baseline, metric, latest).items()}
    shared = [] if arm.label == baseline.label else sorted(values.keys() & theirs.keys())
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
        epochs=fmean(point.epoch for point in reached.values()),
        seconds=fmean(point.seconds for point in reached.values()),
    )


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
