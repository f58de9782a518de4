"""What a callback promises: to watch a run, and to change nothing of it."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sslkit import installed_components
from sslkit.api import resolve_component
from sslkit.engine.loop import train
from sslkit.engine.signals import StopSignals
from sslkit.engine.training import Training
from sslkit.experiment.build import Experiment
from sslkit.experiment.restore import restore
from sslkit.runs.state import read_state

from .any_facts import FactsLaws
from .global_random import global_states
from .laws import LawBrokenError, law, refuse
from .small_runs import SmallRuns, Tensors, batches, changed, copied, listed, other_bits

_EPOCHS, _SAVED_AT = 2, 5
_OWN = ("callback/", "perf/")
"""What a run with callbacks logs beside what it logs without, and what differs from run to run."""
_MEMORY: Any = StorageWeakRef
"""Knows whether anything still holds the memory of a tensor."""
_RUNS = ("it-watches-a-run",)


@dataclass
class Course:
    """What a run came to."""

    experiment: Experiment
    metrics: list[tuple[int, str, float]] = field(default_factory=list)
    """(step, name, value) of all that was logged, in order."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """As the run's log."""
        self.metrics += [(step, name, value) for name, value in metrics.items()]

    @property
    def numbers(self) -> list[str]:
        """Names of what the callback logged."""
        return list(dict.fromkeys(n for _, n, _ in self.metrics if n.startswith("callback/")))

    @property
    def results(self) -> list[str]:
        """What was logged beside that."""
        return [repr(each) for each in self.metrics if not each[1].startswith(_OWN)]

    @cached_property
    def state(self) -> Tensors:
        """Weights, and what the optimiser keeps."""
        t = self.experiment.training
        kept = t.optimization.optimizer.state.values()
        moments = [v for entry in kept for v in entry.values() if isinstance(v, Tensor)]
        return copied(
            {**t.method.state_dict(), **{f"moment {i}": m for i, m in enumerate(moments)}}
        )


class CallbackLaws(FactsLaws):
    """The laws of `Callback`, each tried in short trainings with the engine."""

    kind = "callback"

    @law(
        "work on copies (tensor.clone()), leave the modes of modules alone, and return a mapping "
        "of names to numbers, or nothing"
    )
    def it_watches_a_run(self) -> str:
        """A run with it goes to its end: it changes no parameter, buffer, gradient, view, label or
        mode, and what it returns are numbers."""
        numbers = self._watched.numbers
        return f"logs {', '.join(numbers)}" if numbers else "logs nothing"

    @law(
        "write to nothing that it is given, neither through .data nor through numpy, and change no "
        "setting of torch",
        needs=_RUNS,
    )
    def results_stay(self) -> None:
        """A run with it has the bits of a run without: losses, metrics, scores, weights and what
        the optimiser keeps."""
        self._refuse_others(self._unwatched, self._watched, "with it")

    @law(
        "draw with torch, which has random numbers of its own for each call of a callback",
        needs=_RUNS,
    )
    def no_global_random_numbers(self) -> None:
        """It uses no global random numbers of Python or numpy, which other parts may follow."""
        moved = self._moved
        refuse(moved, f"it moves the global random numbers of {' and '.join(moved)} on")

    @law(
        "build everything in on_start, and find out there what the run folder has already",
        needs=(*_RUNS, "results-stay"),
    )
    def it_begins_anew_after_a_resume(self) -> None:
        """A run that goes on from a checkpoint, with a new callback that has seen nothing before,
        has the bits of one that never stopped."""
        whole, again = self._watched, self._build(watched=True)
        saved = whole.experiment.training.output.checkpoints.paths()[0]
        restore(again.experiment, read_state(saved), str(saved))
        self._go(again)
        odd = other_bits(whole.state, again.state)
        refuse(odd, f"{listed(odd)} differ after a resume")
        later = [each for each in whole.metrics if each[0] > _SAVED_AT]
        missing = {n for _, n, _ in later if n.startswith("callback/")} - set(again.numbers)
        refuse(missing, f"after a resume it logs no {listed(sorted(missing))}")

    @law("expect nothing of how a batch passes the networks", needs=(*_RUNS, "results-stay"))
    def micro_batches_are_watched_alike(self) -> None:
        """Where batches pass the networks in parts, a run with it goes to its end, has the bits of
        one without, and logs the same names."""
        size = self._runs.recipe.train.batch_size // 2
        without = self._run(watched=False, micro_batch_size=size)
        watched = self._run(watched=True, micro_batch_size=size)
        self._refuse_others(without, watched, "with it, in micro-batches,")
        usual = self._watched.numbers
        refuse(watched.numbers != usual, f"it logs {watched.numbers} in place of {usual}")

    @law("clone what is kept beyond the call, or keep numbers", needs=_RUNS)
    def it_keeps_no_tensors(self) -> None:
        """What it is given lives no longer than the call: neither the views of a batch nor the
        gradients are kept, whose memory the next step needs."""
        course = self._build(watched=True)
        t = course.experiment.training
        t.output.callbacks.on_start(t)
        kept: list[str] = []
        for _ in range(2):
            views = self._show_batch(t)
            gradients = self._show_gradients(t)
            gc.collect()
            kept += [name for name, ref in (*views, *gradients) if not ref.expired()]
        refuse(kept, f"after the call it still holds {listed(kept)}")

    def _show_batch(self, t: Training) -> list[tuple[str, Any]]:
        batch = next(batches(t))
        batch = replace(batch, views=tuple(view.clone() for view in batch.views))
        t.output.callbacks.on_batch(t, batch)
        return [
            (f"view {place} of the batch", _MEMORY(view.untyped_storage()))
            for place, view in enumerate(batch.views)
        ]

    def _show_gradients(self, t: Training) -> list[tuple[str, Any]]:
        shown = []
        for name, parameter in t.method.named_parameters():
            parameter.grad = torch.ones_like(parameter)
            ref = _MEMORY(parameter.grad.untyped_storage())
            shown.append((f"the gradient of {name}", ref))
        t.output.callbacks.on_gradients(t)
        t.output.callbacks.take_numbers()
        for parameter in t.method.parameters():
            parameter.grad = None
        return shown

    def _refuse_others(self, one: Course, other: Course, how: str) -> None:
        pairs = zip(one.results, other.results, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        if first is not None:
            raise LawBrokenError(f"(step, name, value) {first[0]} is {first[1]} in a run {how}")
        odd = other_bits(one.state, other.state)
        refuse(odd, f"{listed(odd)} differ after a run {how}")
        refuse(len(one.results) != len(other.results), f"a run {how} logs other names")

    # --- Runs -------------------------------------------------------------------------------------

    @cached_property
    def _unwatched(self) -> Course:
        return self._run(watched=False)

    @cached_property
    def _watched(self) -> Course:
        before = global_states()
        course = self._run(watched=True)
        self._moved = [name for name, state in global_states().items() if state != before[name]]
        return course

    @cached_property
    def _runs(self) -> SmallRuns:
        runs = SmallRuns(self.subject)
        settings = changed(
            runs.recipe.train, epochs=_EPOCHS, log_every_steps=2, checkpoint_every_steps=_SAVED_AT,
            keep_checkpoints=10,
        )  # fmt: skip
        runs.recipe = runs.recipe.model_copy(update={"train": settings})
        return runs

    def _run(self, *, watched: bool, **settings: Any) -> Course:
        course = self._build(watched=watched, **settings)
        self._go(course)
        return course

    def _build(self, *, watched: bool, **settings: Any) -> Course:
        score = resolve_component(
            installed_components(), "evaluator", {"name": "knn", "k": 5, "every_epochs": 1}
        )
        usual = self._runs.recipe
        self._runs.recipe = usual.model_copy(
            update={"callbacks": (self.subject.slot,) if watched else (), "evaluate": (score,)}
        )
        try:
            experiment = self._runs.build(**settings)
        finally:
            self._runs.recipe = usual
        course = Course(experiment)
        experiment.training.output.log = course
        return course

    def _go(self, course: Course) -> None:
        t = course.experiment.training
        t.output.callbacks.on_start(t)
        train(t, StopSignals())
