"""A method on the bench: built, trained a little, and called as the engine calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from sslkit.api import Batch, StepOutput
from sslkit.engine.training import Training
from sslkit.experiment.build import Experiment
from sslkit.randomness import seeded

from .component_laws import ComponentLaws
from .small_runs import SmallRuns, still, take_steps


class MethodBench(ComponentLaws):
    """What the laws of methods share."""

    kind = "method"

    @cached_property
    def runs(self) -> SmallRuns:
        """Short runs of the method."""
        return SmallRuns(self.subject)

    def trained(self) -> Training:
        """A training some steps after its start."""
        t = self.runs.training()
        take_steps(t, 2)
        return t

    def restored(self) -> Training:
        """A new training, from other random weights, with the state of `trained`."""
        t = self.trained()
        again = self._elsewhere().training
        again.load_state_dict({**t.state_dict(), "step": t.progress.step})
        again.method.train()
        return again

    def _elsewhere(self) -> Experiment:
        other = SmallRuns(self.subject)
        other.recipe = other.recipe.model_copy(update={"seed": other.recipe.seed + 1})
        return other.build()

    def still(self) -> Training:
        """A training in float64 whose layers treat samples alone."""
        t = self.runs.training(torch.float64)
        still(t.method)
        return t

    def embed(self, t: Training, batch: Batch, stream: str = "check") -> dict[str, Tensor]:
        with seeded(0, stream):
            return t.method.embed(batch)

    def objective(self, t: Training, embeddings: Mapping[str, Tensor], batch: Batch) -> StepOutput:
        with seeded(0, "objective"):
            return t.method.objective(embeddings, batch, t.progress)

    def hooks(self, t: Training, output: StepOutput) -> None:
        """What happens to the method around the step of the optimiser."""
        with seeded(0, "hooks"):
            t.method.after_step(t.progress.next(), output.carry)
            t.method.before_step(t.progress.next())


def reordered(batch: Batch, order: Tensor) -> Batch:
    """The samples of a batch in another order."""
    return replace(
        batch,
        views=tuple(view[order] for view in batch.views),
        indices=batch.indices[order],
        random=batch.random.select(order),
        labels=None if batch.labels is None else batch.labels[order],
        targets={name: value[order] for name, value in batch.targets.items()},
    )
