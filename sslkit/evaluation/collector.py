"""The names of the evaluators of a suite, and the collection of what they found."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sslkit.api import Evaluation, Evaluator, FeatureEvaluator, SubjectName

from .results import SuiteResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NamedEvaluator:
    """An evaluator under its name in this suite."""

    key: str
    suffix: str  # "" or, where the recipe lists the name again, "_2"
    evaluator: Evaluator

    @cached_property
    def parts(self) -> Sequence[Evaluator]:
        """See `Evaluator.parts`."""
        return tuple(self.evaluator.parts())

    def parts_on(self, subject: SubjectName) -> list[Evaluator]:
        """Those of its parts that measure this subject."""
        if subject == "trained":
            return list(self.parts)
        baseline = "pixels" if subject == "raw" else subject
        wanted = getattr(self.evaluator.config, "baselines", None)
        if wanted is not None and baseline not in wanted:
            return []
        return [part for part in self.parts if baseline in part.baselines]

    def feature_parts_on(self, subject: SubjectName) -> list[FeatureEvaluator]:
        """Those of its parts that read features of this subject."""
        return [part for part in self.parts_on(subject) if isinstance(part, FeatureEvaluator)]

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


def as_one(parts: Sequence[Evaluation]) -> Evaluation:
    """What several parts of an evaluator found. A part that was skipped takes nothing from the
    others, and its reason becomes a note."""
    if len(parts) == 1:
        return parts[0]
    said = dict.fromkeys(
        note for part in parts for note in (part.notes or filter(None, [part.skipped]))
    )
    measured = [part for part in parts if part.skipped is None]
    if not measured:
        return Evaluation(skipped="; ".join(said))
    return Evaluation(
        metrics={name: value for part in measured for name, value in part.metrics.items()},
        draws={name: values for part in measured for name, values in part.draws.items()},
        per_image={name: each for part in measured for name, each in part.per_image.items()},
        resamples={name: each for part in measured for name, each in part.resamples.items()},
        figures={name: figure for part in measured for name, figure in part.figures.items()},
        warning="; ".join(part.warning for part in measured if part.warning) or None,
        notes=list(said),
        stop="; ".join(part.stop for part in measured if part.stop) or None,
    )


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

    def add(self, named: NamedEvaluator, subject: str, parts: Sequence[Evaluation]) -> None:
        """parts: what each part of the evaluator found."""
        for part in parts:
            if not isinstance(part, Evaluation):
                raise TypeError(
                    f"{type(named.evaluator).__name__}.evaluate gave {type(part).__name__}; valid "
                    "is an Evaluation"
                )
        found = as_one(parts)
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
            metrics=self.metrics,
            evaluations=self.evaluations,
            figures=self.figures,
            skipped=self.skipped,
            errors=self.errors,
            seconds=time.perf_counter() - self.started,
            timings=self.timings,
            warnings=self.warnings,
            stops=self.stops,
            notes=self.notes,
        )
