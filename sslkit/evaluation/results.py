"""What an evaluation found, as JSON and as a table of trained against baselines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sslkit.api import Evaluation, ImageScores

from .scores import SUBJECTS, Estimate, score_bounds
from .statistics import (
    Interval,
    mean_interval,
    paired_difference,
    resampled_difference,
    resampled_interval,
    score_difference,
    score_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

V = TypeVar("V")

COST = "perf/evaluation_seconds"
"""Wall time of an evaluation; with `_features` or `_<evaluator>`, that of a part."""


@dataclass(frozen=True)
class SuiteResult:
    """What the evaluators found in one evaluation."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Full key -> value, ready to log: `eval/knn/top1`, `eval/knn/top1_untrained`,
    `collapse/std`."""
    evaluations: Mapping[str, Mapping[str, Evaluation]] = field(default_factory=dict)
    """Subject -> evaluator -> what it found; a skipped evaluator has its reason there."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """`<evaluator>/<name>` -> figure."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Evaluator -> why nothing was measured, for example "no labels"."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Evaluator -> traceback, for the skipped evaluators that raised an exception."""
    seconds: float = 0.0
    """Wall time of the whole evaluation."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds per part: "features/<subject>" and "<evaluator>/<subject>"."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Evaluator -> what it found wrong with the training."""
    stops: Mapping[str, str] = field(default_factory=dict)
    """Evaluator -> why it wants training to end."""
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Evaluator, or "labels" -> what a reader must know beside the numbers."""

    @property
    def cost(self) -> dict[str, float]:
        """Metric -> seconds: `perf/evaluation_seconds`, and for each part of it, features and
        evaluators, `perf/evaluation_seconds_<part>`."""
        seconds = {COST: self.seconds}
        for name, value in self.timings.items():
            key = f"{COST}_{name.partition('/')[0]}"
            seconds[key] = seconds.get(key, 0.0) + value
        return seconds

    @property
    def told(self) -> SuiteResult:
        """What ranks that write nothing need of it: numbers and words."""
        return replace(self, evaluations={}, figures={})

    @property
    def logged(self) -> dict[str, float]:
        """Metrics and cost."""
        return {**self.metrics, **self.cost}

    def to_json(self) -> dict[str, Any]:
        """Everything except the figures' pixels; NaN and infinity become None."""
        return {
            "metrics": _finite(self.metrics),
            "evaluations": {
                subject: {key: _evaluation_json(found) for key, found in protocols.items()}
                for subject, protocols in self.evaluations.items()
            },
            "figures": sorted(self.figures),
            "skipped": dict(self.skipped),
            "errors": dict(self.errors),
            "seconds": self.seconds,
            "timings": dict(self.timings),
            "warnings": {**self.warnings, **self.stops},
            "notes": {key: list(lines) for key, lines in self.notes.items()},
        }


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one evaluator, for every subject that was measured."""

    protocol: str
    metric: str
    values: Mapping[str, Estimate]
    """Subject -> value."""
    differences: Mapping[str, Estimate]
    """Baseline -> trained minus baseline. The interval is that of the differences, paired by draw
    and by image, and absent where the evaluator has neither."""

    def to_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "metric": self.metric,
            "values": {name: value.to_json() for name, value in self.values.items()},
            "differences": {name: value.to_json() for name, value in self.differences.items()},
        }


def comparison(
    trained: SuiteResult, baselines: SuiteResult | None = None, noun: str = "image"
) -> list[ComparisonRow]:
    """The table "pixels / untrained / trained": one row per metric of the trained encoder, in the
    order of the evaluators. Those that were skipped have no row. noun: what was measured on."""
    found = {**(baselines.evaluations if baselines else {}), **trained.evaluations}
    return [_named(row, noun) for row in _rows(found)]


def _named(row: ComparisonRow, noun: str) -> ComparisonRow:
    values, differences = (
        {name: replace(found, noun=noun) for name, found in estimates.items()}
        for estimates in (row.values, row.differences)
    )
    return replace(row, values=values, differences=differences)


def _rows(found: Mapping[str, Mapping[str, Evaluation]]) -> Iterator[ComparisonRow]:
    for protocol, trained in found.get("trained", {}).items():
        for metric in trained.metrics:
            subjects = {
                subject: found[subject][protocol]
                for subject in SUBJECTS
                if metric in found.get(subject, {}).get(protocol, Evaluation()).metrics
            }
            yield ComparisonRow(
                protocol=protocol,
                metric=metric,
                values={name: estimate(each, metric) for name, each in subjects.items()},
                differences={
                    name: _difference(trained, each, metric)
                    for name, each in subjects.items()
                    if name != "trained"
                },
            )


def estimate(evaluation: Evaluation, metric: str) -> Estimate:
    """A metric with its interval: over the test images, over draws, or over both."""
    value, draws = float(evaluation.metrics[metric]), evaluation.draws.get(metric, ())
    scores = evaluation.per_image.get(metric)
    if scores is not None:
        found = score_interval(scores.values, scores.weights, draws)
        return _estimate(value, found, len(draws), _number(scores))
    if (drawn := evaluation.resamples.get(metric)) is not None:
        found = resampled_interval(value, drawn.values, drawn.num_images)
        return _estimate(value, found, 0, drawn.num_images)
    return _estimate(
        value, mean_interval(draws, bounds=score_bounds(metric)) if draws else None, len(draws)
    )


def _difference(trained: Evaluation, baseline: Evaluation, metric: str) -> Estimate:
    value = float(trained.metrics[metric]) - float(baseline.metrics[metric])
    draws = trained.draws.get(metric, ()), baseline.draws.get(metric, ())
    paired = len(draws[0]) == len(draws[1])
    scores, others = trained.per_image.get(metric), baseline.per_image.get(metric)
    if scores is not None and others is not None and len(scores.values) == len(others.values):
        given = draws if paired else ((), ())
        found = score_difference(scores.values, others.values, scores.weights, given)
        return _estimate(value, found, len(given[0]), _number(scores))
    drawn, other = trained.resamples.get(metric), baseline.resamples.get(metric)
    if drawn is not None and other is not None and drawn.num_images == other.num_images:
        found = resampled_difference(value, drawn.values, other.values, drawn.num_images)
        return _estimate(value, found, 0, drawn.num_images)
    if not draws[0] or not paired:
        return _estimate(value, None, len(draws[0]))
    bounds = score_bounds(metric, difference=True)
    return _estimate(value, paired_difference(*draws, bounds=bounds), len(draws[0]))


def _number(scores: ImageScores) -> int:
    """Test images that count."""
    return int((~scores.values.isnan()).sum())


def _estimate(
    value: float, interval: Interval | None, draws: int, images: int | None = None
) -> Estimate:
    if interval is None or math.isnan(interval.low):
        return Estimate(value, draws=max(draws, 1))
    return Estimate(value, interval.low, interval.high, max(draws, 1), images)


def _evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    if evaluation.skipped is not None:
        return {"skipped": evaluation.skipped}
    return {
        "metrics": _finite(evaluation.metrics),
        "draws": {name: _finite_list(values) for name, values in evaluation.draws.items()},
    }


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return dict(zip(values, _finite_list(list(values.values())), strict=True))


def _finite_list(values: Sequence[float | None]) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else float(v) for v in values]


def joined(results: Sequence[SuiteResult]) -> SuiteResult:
    """What several suites found, as if one had."""
    subjects = dict.fromkeys(subject for result in results for subject in result.evaluations)
    parts = dict.fromkeys(part for result in results for part in result.timings)
    return SuiteResult(
        metrics=_union(result.metrics for result in results),
        evaluations={
            subject: _union(result.evaluations.get(subject, {}) for result in results)
            for subject in subjects
        },
        figures=_union(result.figures for result in results),
        skipped=_union(result.skipped for result in results),
        errors=_union(result.errors for result in results),
        seconds=sum(result.seconds for result in results),
        timings={part: sum(result.timings.get(part, 0.0) for result in results) for part in parts},
        warnings=_union(result.warnings for result in results),
        stops=_union(result.stops for result in results),
        notes={
            key: [line for result in results for line in result.notes.get(key, ())]
            for key in dict.fromkeys(key for result in results for key in result.notes)
        },
    )


def _union(mappings: Iterable[Mapping[str, V]]) -> dict[str, V]:
    return {key: value for mapping in mappings for key, value in mapping.items()}
