"""The evaluators of a run: what they measure, when they are due, and what is done about what they
find."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from sslkit.api import Method
from sslkit.engine.embedding_monitor import EmbeddingMonitor
from sslkit.engine.signals import StopSignals
from sslkit.evaluation.results import SuiteResult
from sslkit.evaluation.suite import EvaluationSuites
from sslkit.parallel.sharding import gathered
from sslkit.parallel.shared_work import SharedWork
from sslkit.runs.endings import write_stop
from sslkit.runs.folder import RunFolder

from .measuring import evaluate_calibrated, untrained_networks
from .stores import Stores


@dataclass
class Measured:
    """The method as evaluators, embeddings and the exported encoder have it: the one that is
    trained, itself."""

    method: Method

    @contextmanager
    def up_to_date(self) -> Iterator[None]:
        """Inside, `method` is as training has left it. All ranks enter together."""
        yield


class MeasuredCopy(Measured):
    """A whole copy of a method whose weights lie in parts on the ranks: what is measured may copy
    it, change it or leave some of it out. Between evaluations it lies in the memory of the host."""

    def __init__(self, method: Method, device: torch.device) -> None:
        """method: before it is taken apart."""
        super().__init__(copy.deepcopy(method).to("cpu"))
        self._trained = method
        self._device = device

    @contextmanager
    def up_to_date(self) -> Iterator[None]:
        self.method.load_state_dict(gathered(self._trained.state_dict(), keep=True))
        with torch.no_grad():  # those that no state holds, too
            for own, theirs in zip(self.method.buffers(), self._trained.buffers(), strict=True):
                own.copy_(theirs)
        self.method.to(self._device)
        try:
            yield
        finally:
            self.method.to("cpu")


@dataclass(frozen=True)
class RunEvaluation:
    """Evaluates the method of a run. All ranks call the same methods together; what decides is done
    on rank 0, and known to all. A signal to any of them ends an evaluation on all, by
    KeyboardInterrupt: nothing is lost, because all is saved before."""

    suites: EvaluationSuites
    measured: Measured
    monitor: EmbeddingMonitor
    stores: Stores
    folder: RunFolder

    def is_due(self, epoch: int) -> bool:
        """Whether an evaluator is due when so many epochs are done."""
        return bool(self.suites.due(epoch, final=False))

    def run(self, epoch: int, step: int, stop: StopSignals) -> SuiteResult:
        """Runs those that are due then. step: the one that ended the epoch."""
        with self.stopped_by(stop) as work, self.measured.up_to_date():
            embedded = self._embedded(epoch, final=False)
            found = evaluate_calibrated(self.suites, self.measured.method, epoch, False, embedded)
            if found.stops:  # before they are logged: a kill between the two forgets nothing
                work.once(lambda: write_stop(self.folder, step, found.stops))
        return found

    def run_last(
        self, epoch: int, save: Callable[[], None], make_untrained: Callable[[], Method | None]
    ) -> tuple[SuiteResult, SuiteResult]:
        """Runs all of them, and the baselines, inside `stopped_by`. save: called on rank 0 while
        the method has the batch statistics that it is measured with: those to export."""

        @contextmanager
        def saved() -> Iterator[None]:
            self.suites.work.once(save)
            with self._embedded(epoch, final=True):
                yield

        with self.measured.up_to_date():
            method = self.measured.method
            trained = evaluate_calibrated(self.suites, method, epoch, True, saved())
        return trained, self.suites.baselines(*untrained_networks(make_untrained()))

    def _embedded(self, epoch: int, *, final: bool) -> AbstractContextManager[None]:
        """The embeddings, for evaluators on features, which may ask for them."""
        asked_for = self.suites.images_encoded("trained", epoch, final)
        return self.monitor.on_all_ranks() if asked_for else nullcontext()

    @contextmanager
    def stopped_by(self, stop: StopSignals) -> Iterator[SharedWork]:
        """What is done inside may be cut off: in one process anywhere; with several, all stop when
        a round of batches is done, and what rank 0 does alone by a signal to any."""
        work = self.suites.work
        work.agree, work.alone = partial(stop.agree, work.world), stop.stopping_at_once
        if work.agree():
            raise KeyboardInterrupt
        self.stores.agree(work.world)
        with stop.stopping_at_once() if work.world.size == 1 else nullcontext():
            yield work
