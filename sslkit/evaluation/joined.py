"""The evaluators of a recipe where some of them bring data of their own: one suite for each data
set, measured as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from torch import nn

from .results import SuiteResult
from .suite import EvaluationSuite

V = TypeVar("V")


class EvaluationSuites:
    """A suite on the data of the run, and further ones on the data of entries of `evaluate`. Every
    encoder is measured with the batch statistics of the run's training images, on all of them: it
    is the one that is exported."""

    def __init__(self, own: EvaluationSuite, others: Sequence[EvaluationSuite] = ()) -> None:
        """own: on the data of the run. The names of all evaluators are unique."""
        self._own = own
        self._all = (own, *others)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the evaluators, those on the data of the run first."""
        return tuple(name for suite in self._all for name in suite.names)

    def due(self, epoch: int, final: bool) -> list[str]:
        """See `EvaluationSuite.due`."""
        return [name for suite in self._all for name in suite.due(epoch, final)]

    def takes_features(self, epoch: int, final: bool) -> bool:
        """See `EvaluationSuite.takes_features`."""
        return any(suite.takes_features(epoch, final) for suite in self._all)

    def calibrated(
        self, encoder: nn.Module, projection_layers: Sequence[nn.Module] = ()
    ) -> AbstractContextManager[float]:
        """See `EvaluationSuite.calibrated`; on the data of the run."""
        return self._own.calibrated(encoder, projection_layers)

    def run(
        self,
        encoder: nn.Module,
        epoch: int,
        final: bool,
        projection_layers: Sequence[nn.Module] = (),
        *,
        calibration_seconds: float = 0.0,
    ) -> SuiteResult:
        """See `EvaluationSuite.run`."""
        first, *others = self._all
        results = [
            first.run(
                encoder, epoch, final, projection_layers, calibration_seconds=calibration_seconds
            )
        ]
        results += [other.run(encoder, epoch, final, projection_layers) for other in others]
        return joined(results)

    def baselines(
        self, untrained: nn.Module | None, projection_layers: Sequence[nn.Module] = ()
    ) -> SuiteResult:
        """See `EvaluationSuite.baselines`."""
        return joined([suite.baselines(untrained, projection_layers) for suite in self._all])

    def seconds_per_image(self, encoder: nn.Module) -> float:
        """See `EvaluationSuite.seconds_per_image`."""
        return self._own.seconds_per_image(encoder)


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
