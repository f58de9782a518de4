"""A method on the bench: built, trained a little, and called as the engine calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from sslkit.api import Batch, StepOutput
from sslkit.engine.step import update_losses
from sslkit.engine.step_metrics import read_metrics
from sslkit.engine.training import Training
from sslkit.randomness import seeded

from .any_facts import FactsLaws
from .small_runs import SmallRuns, still, take_steps


class MethodBench(FactsLaws):
    """What the laws of methods share."""

    kind = "method"

    @cached_property
    def runs(self) -> SmallRuns:
        """Short runs of the method."""
        return SmallRuns(self.subject)

    def begun(self) -> Training:
        """A training some steps after its start."""
        t = self.runs.training()
        take_steps(t, 2)
        return t

    def trained(self) -> Training:
        """Such a training, ready for the next step."""
        return self.ready(self.begun())

    def twins(self) -> tuple[Training, Training]:
        """Such a training, and a new one that began with other random weights and has taken over
        its state."""
        t, again = self.begun(), self.runs.of_another_seed().training()
        again.load_state_dict({**t.state_dict(), "step": t.progress.step})
        again.method.train()
        return self.ready(t), self.ready(again)

    def ready(self, t: Training) -> Training:
        """The training once `before_step` has been called, as it is before any `embed`."""
        with seeded(0, "before"):
            t.method.before_step(t.progress)
        return t

    def still(self) -> Training:
        """A training in float64 whose layers treat samples alone."""
        t = self.runs.training(torch.float64)
        still(t.method)
        return self.ready(t)

    def embed(self, t: Training, batch: Batch, stream: str = "check") -> dict[str, Tensor]:
        with seeded(0, stream):
            return t.method.embed(batch)

    def objective(self, t: Training, embeddings: Mapping[str, Tensor], batch: Batch) -> StepOutput:
        with seeded(0, "objective"):
            return t.method.objective(embeddings, batch, t.progress)

    def metrics(
        self, t: Training, embeddings: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, float]:
        """The metrics of the objective and of its losses, read as the engine reads them."""
        output = self.objective(t, embeddings, batch)
        found = read_metrics(t.method, output, 0, t.progress.step)  # one seed for twins
        return {name: float(value) for name, value in found.items()}

    def hooks(self, t: Training, output: StepOutput) -> None:
        """What happens to the method from one step of the optimiser to the next."""
        with seeded(0, "hooks"):
            update_losses(t, output)
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
