"""The evaluators of a run on its way: when they are due, and what is done about what they find."""

from __future__ import annotations

from dataclasses import dataclass

from sslkit.api import Method
from sslkit.evaluation.results import SuiteResult
from sslkit.evaluation.suite import EvaluationSuites
from sslkit.parallel.world import World
from sslkit.runs.endings import write_stop
from sslkit.runs.folder import RunFolder

from .measuring import evaluate_calibrated
from .stores import Stores


@dataclass(frozen=True)
class RunEvaluation:
    """Evaluates the method of a run after an epoch, on rank 0; the result is everywhere."""

    suites: EvaluationSuites
    method: Method
    stores: Stores
    folder: RunFolder
    world: World

    def is_due(self, epoch: int) -> bool:
        """Whether an evaluator is due when so many epochs are done."""
        return bool(self.suites.due(epoch, final=False))

    def run(self, epoch: int, step: int) -> SuiteResult:
        """Runs those that are due then. step: the one that ended the epoch."""
        self.stores.agree(self.world)
        return self.world.once(lambda: self._run_here(epoch, step))

    def _run_here(self, epoch: int, step: int) -> SuiteResult:
        found = evaluate_calibrated(self.suites, self.method, epoch, final=False)
        if found.stops:  # before they are logged: a kill between the two forgets nothing
            write_stop(self.folder, step, found.stops)
        return found
