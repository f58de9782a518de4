"""The names of the protocols of a suite, and the collection of what they found."""

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
class Protocol:
    """An evaluator under its name in this suite."""

    key: str
    suffix: str  # "" or, where the recipe lists the name again, "_2"
    evaluator: Evaluator

    def metric_key(self, name: str, subject: str) -> str:
        first, slash, rest = name.partition("/")
        stem = f"{first}{self.suffix}/{rest}" if slash else f"eval/{self.key}/{name}"
        return stem if subject == "trained" else f"{stem}_{subject}"


def named_protocols(evaluators: Sequence[tuple[str, Evaluator]]) -> list[Protocol]:
    """Unique keys: a repeated name gets the next free number."""
    taken = {name for name, _ in evaluators}
    seen: Counter[str] = Counter()
    protocols = []
    for name, evaluator in evaluators:
        seen[name] += 1
        suffix = "" if seen[name] == 1 else f"_{seen[name]}"
        while suffix and name + suffix in taken:
            seen[name] += 1
            suffix = f"_{seen[name]}"
        protocols.append(Protocol(name + suffix, suffix, evaluator))
    return protocols


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

    def add(self, protocol: Protocol, subject: str, found: Evaluation) -> None:
        if not isinstance(found, Evaluation):
            raise TypeError(
                f"{type(protocol.evaluator).__name__}.evaluate gave {type(found).__name__}; valid "
                "is an Evaluation"
            )
        if found.skipped is not None:
            return self.skip(protocol, subject, found.skipped)
        metrics = {name: float(value) for name, value in found.metrics.items()}
        self.evaluations.setdefault(subject, {})[protocol.key] = replace(found, metrics=metrics)
        for name, value in metrics.items():
            self.metrics[protocol.metric_key(name, subject)] = value
        known = self.notes.get(protocol.key, [])
        if new := [note for note in found.notes if note not in known]:
            self.notes[protocol.key] = [*known, *new]
        if subject == "trained":
            for name, figure in found.figures.items():
                self.figures[f"{protocol.key}/{name}"] = figure
            if found.warning is not None:
                self.warnings[protocol.key] = found.warning
            if found.stop is not None:
                self.stops[protocol.key] = found.stop

    def skip(self, protocol: Protocol, subject: str, reason: str) -> None:
        self.evaluations.setdefault(subject, {})[protocol.key] = Evaluation(skipped=reason)
        self.skipped[protocol.key] = reason

    def fail(self, protocol: Protocol, subject: str, error: BaseException) -> None:
        lines = str(error).splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
        self.skip(protocol, subject, reason)
        self.errors[protocol.key] = "".join(traceback.format_exception(error))
        warnings.warn(
            f"evaluation {self.when}: {protocol.key} on {subject} failed: {reason}", stacklevel=2
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
