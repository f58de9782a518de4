"""The final measurements of a run: trained encoder beside raw samples and the untrained encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sslkit.evaluation.conditions import Conditions
from sslkit.evaluation.results import ComparisonRow, SuiteResult, comparison
from sslkit.evaluation.scores import (
    ACCURACY,
    SUBJECTS,
    Estimate,
    is_score,
    is_share,
    score_bounds,
)

from .cost import RunCost


def in_percent(key: str) -> bool:
    """Whether the full key of a metric, such as `eval/knn/top1`, names a share."""
    return is_share(key.rpartition("/")[2])


def bounds(key: str, *, difference: bool = False) -> tuple[float, float]:
    """What the metric with this full key can be, or the difference of two of it."""
    return score_bounds(key.rpartition("/")[2], difference=difference)


def main_metrics(metrics: Iterable[str]) -> list[str]:
    """Those of an evaluator's metrics, in their order, by which arms are compared: its scores
    or, where it has none, the first. A name with a slash is a diagnostic and never one of them."""
    own = [metric for metric in metrics if "/" not in metric]
    return [metric for metric in own if is_score(metric)] or own[:1]


@dataclass(frozen=True)
class FinalResults:
    """What a run came to, evaluator by evaluator."""

    rows: Sequence[ComparisonRow]
    trained: SuiteResult
    baselines: SuiteResult
    cost: RunCost | None = None
    """What evaluation cost in the whole run; None outside a run."""
    conditions: Conditions | None = None

    @classmethod
    def collect(
        cls,
        trained: SuiteResult,
        baselines: SuiteResult,
        cost: RunCost | None = None,
        conditions: Conditions | None = None,
    ) -> FinalResults:
        """Puts the results of the trained encoder and of the baselines side by side."""
        noun = conditions.noun if conditions else "image"
        return cls(comparison(trained, baselines, noun), trained, baselines, cost, conditions)

    def sentences(self) -> list[str]:
        """How the numbers came about and what they cost, one line each."""
        conditions = self.conditions.sentences() if self.conditions and self.rows else []
        return [*conditions, *([self.cost.sentence()] if self.cost else [])]

    def to_json(self) -> dict[str, Any]:
        """Everything, for results.json."""
        return {
            "comparison": [row.to_json() for row in self.rows],
            "trained": self.trained.to_json(),
            "baselines": self.baselines.to_json(),
            "cost": self.cost.to_json() if self.cost else None,
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows of accuracies and the like, in percent, with 95 % intervals."""
        raw = "raw" if any("raw" in row.values for row in self.rows) else "pixels"
        subjects = [name for name in SUBJECTS if name == raw or name not in ("pixels", "raw")]
        heads = [
            "protocol", *subjects, f"trained - {raw}", "trained - untrained", "intervals over",
        ]  # fmt: skip
        rows = [
            [
                f"{row.protocol} {row.metric}",
                *(_cell(row.values.get(subject)) for subject in subjects),
                _cell(row.differences.get(raw), signed=True),
                _cell(row.differences.get("untrained"), signed=True),
                row.values["trained"].over or "-",
            ]
            for row in self.rows
            if is_score(row.metric)
        ]
        return heads, rows

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers: what was left out of the trained encoder's,
        and of the baselines' where that differs."""
        return [
            f"{key}: {line}{ending}"
            for found, others, ending in (
                (self.trained.notes, {}, ""),
                (self.baselines.notes, self.trained.notes, " (of a baseline)"),
            )
            for key, lines in found.items()
            for line in lines
            if line not in others.get(key, ())
        ]

    def compared(self) -> list[ComparisonRow]:
        """The accuracies that have a baseline to be compared with."""
        return [row for row in self.rows if row.metric.startswith(ACCURACY) and len(row.values) > 1]

    def others(self) -> dict[str, float]:
        """The trained encoder's metrics that the table leaves out, such as `collapse/std`."""
        shown = {f"eval/{row.protocol}/{row.metric}" for row in self.rows
                 if is_score(row.metric)}  # fmt: skip
        return {key: value for key, value in self.trained.metrics.items() if key not in shown}


def _cell(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+z" if signed else ""  # z: what is rounded to zero has no minus
    text = f"{100 * estimate.value:{sign}.1f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]"
    return text
