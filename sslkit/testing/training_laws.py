"""What a method promises about whole trainings: resume, micro-batches, ranks, precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sslkit.engine.loop import save
from sslkit.engine.step import full_precision
from sslkit.experiment.restore import restore
from sslkit.nn.numerics import autocast
from sslkit.runs.state import read_state

from .courses import course, courses_of_ranks
from .elsewhere import courses_elsewhere, described, steps_elsewhere
from .forked import forks_compute_gradients
from .laws import law, refuse
from .method_notes import cost_of_a_step, loss_over_time
from .sample_laws import SampleLaws
from .small_runs import (
    STEPS,
    Tensors,
    batches,
    farthest,
    listed,
    other_bits,
    take_steps,
)

_AFTER_STEPS = 1e-7
"""Rounding of a few steps in float64, of methods that divide by deviations of few images."""
_HALF_PRECISION = 0.15
"""How far bf16, with 8 bits, may move a loss."""


class TrainingLaws(SampleLaws):
    """The laws of `Method` over several steps."""

    @law(
        "look for what is not seeded, or outlives a run: clocks, generators of its own, threads, "
        "variables of a class or a module",
        needs=("trains", "no-global-random-numbers"),
    )
    def steps_repeat(self) -> None:
        """The same training twice has the same bits."""
        one, other = (take_steps(self.runs.training()) for _ in range(2))
        refuse(one.losses != other.losses, _first_other(one.losses, other.losses))
        odd = other_bits(one.state, other.state)
        refuse(odd, f"{listed(odd)} differ after {STEPS} steps")

    @law(
        "sort sets before their order matters, and use neither hash() nor id() as a number",
        needs=("steps-repeat",),
        slow=True,
    )
    def another_interpreter_repeats(self) -> None:
        """Another interpreter takes the same steps, to the bit: nothing follows the order of sets,
        hash() of texts, or id()."""
        found = steps_elsewhere(self.subject)
        here = described(take_steps(self.runs.training()))
        refuse(found["losses"] != here["losses"], _first_other(here["losses"], found["losses"]))
        state, other = here["state"], found["state"]
        odd = [n for n in sorted(state.keys() | other.keys()) if state.get(n) != other.get(n)]
        refuse(odd, f"{listed(odd)} differ after {STEPS} steps")

    @law(
        "keep what lasts in parameters and buffers, and change it in after_step",
        needs=("state-is-complete", "metrics-are-of-their-step"),
    )
    def resumed_equals_uninterrupted(self) -> None:
        """A training that goes on from a checkpoint has the bits of one that never stopped: losses,
        metrics, weights and the state of the optimiser."""
        whole = self.runs.training()
        uninterrupted = take_steps(whole, 2 * STEPS)
        first = self.runs.build()
        take_steps(first.training, STEPS)
        saved = save(first.training)
        second = self.runs.build()
        restore(second, read_state(saved), str(saved))
        second.training.method.train()
        resumed = take_steps(second.training, STEPS)
        losses, metrics = uninterrupted.losses[STEPS:], uninterrupted.metrics[STEPS:]
        refuse(resumed.losses != losses, _first_other(losses, resumed.losses, STEPS))
        for name in metrics[0]:
            mine, theirs = ([each[name] for each in taken] for taken in (metrics, resumed.metrics))
            refuse(repr(mine) != repr(theirs), _first_other(mine, theirs, STEPS, name))
        odd = other_bits(uninterrupted.state, resumed.state)
        refuse(odd, f"{listed(odd)} differ after {2 * STEPS} steps, of which {STEPS} were resumed")

    @law(
        "compute metrics from detached tensors, without drawing random numbers or writing anything",
        needs=("objective-changes-no-state", "steps-repeat"),
    )
    def reading_metrics_changes_nothing(self) -> None:
        """A training whose metrics are read at every step has the bits of one whose metrics are
        never read."""
        read, unread = (take_steps(self.runs.training(), log=log) for log in (True, False))
        odd = other_bits(read.state, unread.state)
        refuse(odd, f"{listed(odd)} differ after {STEPS} steps")

    @law(
        "compute embeddings in embed, from views, and the loss in objective, from the embeddings "
        "of the whole batch: batch.views may be empty there",
        needs=("embed-treats-rows-alone", "objective-changes-no-state", "steps-repeat"),
    )
    def micro_batches_are_exact(self) -> None:
        """A batch that passes the networks in two micro-batches has the loss, the gradient and the
        next state of one that passes as a whole (BatchNorm as in evaluation)."""
        half = self.runs.recipe.train.batch_size // 2
        whole, parts = (
            course(self.runs.training(torch.float64, micro_batch_size=size), batch_norm=False)
            for size in (None, half)
        )
        name, far = farthest(parts, whole)
        refuse(far > _AFTER_STEPS, f"{name} is {far:.2g} away from that of whole batches")

    @law(
        "compute what goes over the batch in objective, which sees all of it on every rank; in "
        "networks BatchNorm of torch alone is made to see all ranks",
        needs=("micro-batches-are-exact",),
        slow=True,
    )
    def ranks_agree(self) -> str:
        """Two and four processes train what one does: losses, the first gradient, the state."""
        one, worst = course(self.runs.training(torch.float64)), 0.0
        for size in (2, 4):
            for rank, found in enumerate(self._courses_of_ranks(size)):
                name, far = farthest(found, one)
                refuse(
                    far > _AFTER_STEPS,
                    f"with {size} processes {name} of rank {rank} is {far:.2g} away from that of "
                    "one process",
                )
                worst = max(worst, far)
        return f"at most {worst:.1g} apart"

    def _courses_of_ranks(self, size: int) -> list[Tensors]:
        folder = self.subject.folder / f"ranks{size}"
        if forks_compute_gradients():  # sooner, and for classes that no other process can import
            return courses_of_ranks(self.runs, size, folder)
        return courses_elsewhere(self.subject, size, folder)

    @law(
        "compute losses in float32 (embeddings come in it), and leave autocast to the engine",
        needs=("embed-draws-by-sample", "objective-changes-no-state"),
    )
    def half_precision_is_safe(self) -> str:
        """Networks in bf16 give a finite loss, in float32, near the one of networks in float32."""
        t = self.trained()
        batch = next(batches(t))
        losses = []
        for precision in ("fp32", "bf16"):
            with autocast(t.compute.device, precision):
                embeddings = self.embed(t, batch)
            embeddings = {name: full_precision(value) for name, value in embeddings.items()}
            loss = self.objective(t, embeddings, batch).loss
            refuse(loss.dtype != torch.float32, f"the loss is in {loss.dtype}")
            losses.append(float(loss))
        far = abs(losses[0] - losses[1]) / (abs(losses[0]) + 0.5)
        refuse(
            not far < _HALF_PRECISION,
            f"the loss is {losses[0]:.5g} in float32, {losses[1]:.5g} in bf16",
        )
        return f"{losses[0]:.5g} in float32, {losses[1]:.5g} in bf16"

    slow_notes = True

    def notes(self) -> Iterator[str]:
        """Whether it learns, and the cost of a step."""
        yield loss_over_time(self)
        yield from cost_of_a_step(self)


def _first_other(
    one: Sequence[float], other: Sequence[float], before: int = 0, name: str = "loss"
) -> str:
    """Where two courses of a number part. before: steps before their first."""
    for step, (mine, theirs) in enumerate(zip(one, other, strict=True), before + 1):
        if repr(mine) != repr(theirs):
            return f"the {name} of step {step} is {mine:.9g} the first time, {theirs:.9g} then"
    return ""
