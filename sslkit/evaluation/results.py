"""What an evaluation found, as JSON and as a table of trained against baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sslkit.interfaces import Evaluation

from .statistics import Interval, mean_interval, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUBJECTS = ("pixels", "untrained", "trained")
"""The order of columns."""
COST = "perf/evaluation_seconds"
"""Wall time of an evaluation; with `_features` or `_<protocol>`, that of a part."""


@dataclass(frozen=True)
class SuiteResult:
    """What the protocols found in one evaluation."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Full key -> value, ready to log: `eval/knn/top1`, `eval/knn/top1_untrained`,
    `collapse/std`."""
    evaluations: Mapping[str, Mapping[str, Evaluation]] = field(default_factory=dict)
    """Subject -> protocol -> what it found; a skipped protocol has its reason there."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """`<protocol>/<name>` -> figure."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> why nothing was measured, for example "no labels"."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> traceback, for the skipped protocols that raised an exception."""
    seconds: float = 0.0
    """Wall time of the whole evaluation."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds per part: "features/<subject>" and "<protocol>/<subject>"."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> what it found wrong with the training."""
    stops: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> why it wants training to end."""

    @property
    def cost(self) -> dict[str, float]:
        """Metric -> seconds: `perf/evaluation_seconds`, and for each part of it, features and
        protocols, `perf/evaluation_seconds_<part>`."""
        seconds = {COST: self.seconds}
        for name, value in self.timings.items():
            key = f"{COST}_{name.partition('/')[0]}"
            seconds[key] = seconds.get(key, 0.0) + value
        return seconds

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
        }


@dataclass(frozen=True)
class Estimate:
    """A measured value; with an interval where it is the mean of several draws."""

    value: float
    low: float | None = None
    high: float | None = None
    draws: int = 1

    def to_json(self) -> dict[str, float | int | None]:
        return {**_finite({"value": self.value, "low": self.low, "high": self.high}),
                "draws": self.draws}  # fmt: skip


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one protocol, for every subject that was measured."""

    protocol: str
    metric: str
    values: Mapping[str, Estimate]
    """Subject -> value."""
    differences: Mapping[str, Estimate]
    """Baseline -> trained minus baseline. The interval is that of the paired differences over
    draws, and absent where the protocol made none."""

    def to_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "metric": self.metric,
            "values": {name: value.to_json() for name, value in self.values.items()},
            "differences": {name: value.to_json() for name, value in self.differences.items()},
        }


def comparison(trained: SuiteResult, baselines: SuiteResult | None = None) -> list[ComparisonRow]:
    """The table "pixels / untrained / trained": one row per metric of the trained encoder, in the
    order of the protocols. Protocols that were skipped have no row."""
    found = {**(baselines.evaluations if baselines else {}), **trained.evaluations}
    return list(_rows(found))


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


def estimate(evaluation: Evaluation, metric: str, confidence: float = 0.95) -> Estimate:
    """A metric with the interval of the mean of its draws."""
    draws = evaluation.draws.get(metric, ())
    value = float(evaluation.metrics[metric])
    return _estimate(value, mean_interval(draws, confidence) if draws else None, len(draws))


def _difference(trained: Evaluation, baseline: Evaluation, metric: str) -> Estimate:
    a, b = trained.draws.get(metric, ()), baseline.draws.get(metric, ())
    value = float(trained.metrics[metric]) - float(baseline.metrics[metric])
    paired = paired_difference(a, b) if a and len(a) == len(b) else None
    return _estimate(value, paired, len(a))


def _estimate(value: float, interval: Interval | None, draws: int) -> Estimate:
    if interval is None or math.isnan(interval.low):
        return Estimate(value, draws=max(draws, 1))
    return Estimate(value, interval.low, interval.high, draws)


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
