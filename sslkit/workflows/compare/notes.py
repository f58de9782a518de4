"""What a reader of a comparison must know beside the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from sslkit.evaluation.statistics import FEWEST, no_spread
from sslkit.report.comparison.side_by_side import Comparison


def find_notes(comparison: Comparison) -> list[str]:
    """One sentence each."""
    return [
        *_missing_runs(comparison),
        *_no_spread(comparison),
        *_matched_time(comparison),
        *_not_measured(comparison),
        *_unlike_conditions(comparison),
    ]


def _missing_runs(comparison: Comparison) -> Iterator[str]:
    for number in range(1, FEWEST):
        few = [arm.label for arm in comparison.arms if len(arm.records) == number]
        if few:
            yield f"n = {number}, so no interval over seeds: {', '.join(few)}."
    for arm in comparison.arms:
        for seed, reason in arm.failed.items():
            yield f"{arm.label}: seed {seed} has no result and is left out ({reason})."


def _no_spread(comparison: Comparison) -> Iterator[str]:
    """Where all seeds gave one value: Student's t would be an interval without a width."""
    for row in comparison.rows:
        if len(row.values) >= FEWEST and no_spread(row.values):
            yield (
                f"{row.arm}: {_short(row.metric)} is equal for all {len(row.values)} seeds; their "
                "spread is not known, so no interval."
            )


def _matched_time(comparison: Comparison) -> Iterator[str]:
    if comparison.time_limit is None:
        return
    yield (
        f"Matched time: the fastest run ended after {comparison.time_limit:,.1f} s of training; "
        "accuracies are those of each run's last evaluation up to then, or up to "
        f"{comparison.time_tolerance:.0%} later."
    )
    whole = {arm.label: arm.records[0].epochs for arm in comparison.arms if arm.records}
    early = {row.arm: None for row in comparison.rows if row.epochs < whole[row.arm]}
    if early:
        yield (
            f"Read before its end, in the middle of its learning-rate schedule: {', '.join(early)}."
        )
    given = {(row.arm, row.metric) for row in comparison.rows}
    for arm in comparison.arms:
        measured = {metric for record in arm.records for metric in record.scores}
        missing = [m for m in comparison.metrics if m in measured and (arm.label, m) not in given]
        if missing:
            yield (
                f"{arm.label}: not available at that time: {', '.join(map(_short, missing))}; a "
                "protocol with every_epochs would have measured it."
            )


def _not_measured(comparison: Comparison) -> Iterator[str]:
    for metric in comparison.metrics:
        without = [
            arm.label
            for arm in comparison.arms
            if arm.records and all(metric not in record.scores for record in arm.records)
        ]
        if without:
            yield f"{_short(metric)}: not measured by {', '.join(without)}."


def _unlike_conditions(comparison: Comparison) -> Iterator[str]:
    records = [record for arm in comparison.arms for record in arm.records]
    machines = sorted({record.machine for record in records})
    if len(machines) > 1:
        yield f"Times are not comparable, runs come from {'; '.join(machines)}."
    precisions = {
        arm.label: " and ".join(sorted({r.recipe.evaluation_precision for r in arm.records}))
        for arm in comparison.arms
        if arm.records
    }
    if len(set(precisions.values())) > 1:
        listed = ", ".join(f"{label}: {precision}" for label, precision in precisions.items())
        yield f"Measured in different precisions (evaluation_precision): {listed}."
    for package in sorted({name for record in records for name in record.versions}):
        versions = {r.versions[package] for r in records if package in r.versions}
        if len(versions) > 1:
            listed = ", ".join(sorted(versions))
            yield f"Runs were made with different versions of {package}: {listed}."


def _short(metric: str) -> str:
    return metric.removeprefix("eval/")
