"""The names of the evaluators of a suite, and the collection of what they found."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sslkit.api import Evaluation, Evaluator

from .results import SuiteResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NamedEvaluator:
    """An evaluator under its name in this suite."""

    key: str
    suffix: str  # "" or, where the recipe lists the name again, "_2"
    evaluator: Evaluator

    def metric_key(self, name: str, subject: str) -> str:
        first, slash, rest = name.partition("/")
        stem = f"{first}{self.suffix}/{rest}" if slash else f"eval/{self.key}/{name}"
        return stem if subject == "trained" else f"{stem}_{subject}"


def named_evaluators(evaluators: Sequence[tuple[str, Evaluator]]) -> list[NamedEvaluator]:
    """Unique keys: a repeated name gets the next free number."""
    taken = {name for name, _ in evaluators}
    seen: Counter[str] = Counter()
    found = []
    for name, evaluator in evaluators:
        seen[name] += 1
        suffix = "" if seen[name] == 1 else f"_{seen[name]}"
        while suffix and name + suffix in taken:
            seen[name] += 1
            suffix = f"_{seen[name]}"
        found.append(NamedEvaluator(name + suffix, suffix, evaluator))
    return found


@dataclass
class Collector:
    """Collects a `SuiteResult`."""

    when: str
    metrics: dict[str, float] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    stops: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[part] = self.timings.get(part, 0.0) + time.perf_counter() - start

    def calibrated(self, subject: str, seconds: float) -> None:
        """Counts the seconds that batch statistics took; none leave no entry."""
        if seconds > 0.0:
            self.timings[f"calibration/{subject}"] = seconds

    def add(self, named: NamedEvaluator, subject: str, found: Evaluation) -> None:
        if not isinstance(found, Evaluation):
            raise TypeError(
                f"{type(named.evaluator).__name__}.evaluate gave {type(found).__name__}; valid "
                "is an Evaluation"
            )
        if found.skipped is not None:
            return self.skip(named, subject, found.skipped)
        metrics = {name: float(value) for name, value in found.metrics.items()}
        self.evaluations.setdefault(subject, {})[named.key] = replace(found, metrics=metrics)
        for name, value in metrics.items():
            self.metrics[named.metric_key(name, subject)] = value
        known = self.notes.get(named.key, [])
        if new := [note for note in found.notes if note not in known]:
            self.notes[named.key] = [*known, *new]
        if subject == "trained":
            for name, figure in found.figures.items():
                self.figures[f"{named.key}/{name}"] = figure
            if found.warning is not None:
                self.warnings[named.key] = found.warning
            if found.stop is not None:
                self.stops[named.key] = found.stop

    def skip(self, named: NamedEvaluator, subject: str, reason: str) -> None:
        self.evaluations.setdefault(subject, {})[named.key] = Evaluation(skipped=reason)
        self.skipped[named.key] = reason

    def fail(self, named: NamedEvaluator, subject: str, error: BaseException) -> None:
        lines = str(error).splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
        self.skip(named, subject, reason)
        self.errors[named.key] = "".join(traceback.format_exception(error))
        warnings.warn(
            f"evaluation {self.when}: {named.key} on {subject} failed: {reason}", stacklevel=2
        )

    def result(self) -> SuiteResult:
        return SuiteResult(
            self.metrics,
            self.evaluations,
            self.figures,
            self.skipped,
            self.errors,
            time.perf_counter() - self.started,
            self.timings,
            self.warnings,
            self.stops,
            self.notes,
        )
