"""What a method promises about whole trainings: resume, micro-batches, ranks, precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sslkit.engine.loop import save
from sslkit.engine.step import full_precision
from sslkit.engine.training import Training
from sslkit.errors import SSLKitError
from sslkit.experiment.restore import restore
from sslkit.nn.numerics import autocast
from sslkit.parallel.world import World
from sslkit.recipe import load_recipe
from sslkit.runs.state import read_state

from .forked import on_ranks
from .laws import law, refuse
from .method_laws import ROUNDING, MethodLaws
from .small_runs import (
    STEPS,
    SmallRuns,
    Tensors,
    batches,
    copied,
    farthest,
    listed,
    other_bits,
    still,
    take_steps,
    without_dropout,
)
from .subject import SMALL_RECIPE

_OVER_RANKS = 1e-7
"""Rounding of a few steps in float64 with BatchNorm, which divides by deviations of few images."""
_HALF_PRECISION = 0.15
"""How far bf16, with 8 bits, may move a loss."""
_PAIRS = 7
_HALF = "trains", "state-is-complete", "steps-repeat"


class TrainingLaws(MethodLaws):
    """The laws of `Method` over several steps."""

    @law(
        "look for what is not seeded: sets, clocks, generators of its own, threads",
        needs=("trains", "no-global-random-numbers"),
    )
    def steps_repeat(self) -> None:
        """The same training twice has the same bits."""
        one, other = (take_steps(self.runs.training()) for _ in range(2))
        refuse(one.losses != other.losses, f"losses {one.losses} and {other.losses}")
        odd = other_bits(one.state, other.state)
        refuse(odd, f"{listed(odd)} differ after {STEPS} steps")

    @law("keep what lasts in parameters and buffers, and change it in after_step", needs=_HALF)
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
        refuse(
            resumed.losses != uninterrupted.losses[STEPS:],
            f"losses {uninterrupted.losses[STEPS:]} became {resumed.losses}",
        )
        refuse(
            repr(resumed.metrics) != repr(uninterrupted.metrics[STEPS:]),
            f"metrics {uninterrupted.metrics[STEPS:]} became {resumed.metrics}",
        )
        odd = other_bits(uninterrupted.state, resumed.state)
        refuse(odd, f"{listed(odd)} differ")

    @law(
        "compute metrics from detached tensors, without drawing random numbers or writing anything",
        needs=("trains", "objective-changes-no-state", "steps-repeat"),
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
        needs=("trains", "embed-treats-rows-alone", "objective-changes-no-state"),
    )
    def micro_batches_are_exact(self) -> None:
        """A batch that passes the networks in two micro-batches has the loss, the gradient and the
        next state of one that passes as a whole (BatchNorm as in evaluation)."""
        half = self.runs.recipe.train.batch_size // 2
        whole, parts = (
            _course(self.runs.training(torch.float64, micro_batch_size=size), batch_norm=False)
            for size in (None, half)
        )
        name, far = farthest(parts, whole)
        refuse(far > ROUNDING, f"{name} is {far:.2g} away from that of whole batches")

    @law(
        "compute what goes over the batch in objective, which sees all of it on every rank; in "
        "networks BatchNorm of torch alone is made to see all ranks",
        needs=("trains", "embed-treats-rows-alone", "micro-batches-are-exact"),
        slow=True,
    )
    def ranks_agree(self) -> str:
        """Two and four processes train what one does: losses, the first gradient, the state."""
        one = _course(self.runs.training(torch.float64))
        worst = 0.0
        for size in (2, 4):
            folder = self.subject.folder / f"ranks{size}"
            for rank, found in enumerate(on_ranks(self._course_of_rank, size, folder)):
                name, far = farthest(found, one)
                refuse(
                    far > _OVER_RANKS,
                    f"with {size} processes {name} of rank {rank} is {far:.2g} away from that of "
                    "one process",
                )
                worst = max(worst, far)
        return f"at most {worst:.1g} apart"

    def _course_of_rank(self, world: World) -> Mapping[str, Tensor]:
        return _course(self.runs.training(torch.float64, world))

    @law(
        "compute losses in float32 (embeddings come in it), and leave autocast to the engine",
        needs=("trains",),
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

    def notes(self) -> Iterator[str]:
        """The cost of a step."""
        reference = SmallRuns(self.subject)
        usual = load_recipe(SMALL_RECIPE).method
        reference.recipe = reference.recipe.model_copy(update={"method": usual})
        try:
            mine, theirs = self.runs.training(), reference.training()
            take_steps(mine, 2), take_steps(theirs, 2)
        except (SSLKitError, ValueError, RuntimeError):  # it may not take these views
            return
        ratios = [_seconds(mine) / _seconds(theirs) for _ in range(_PAIRS)]
        yield (
            f"a step takes {statistics.median(ratios):.2f} of the processor time of one of "
            f"{usual.name} on the same data, views and backbone ({min(ratios):.2f} to "
            f"{max(ratios):.2f}, n = {_PAIRS} pairs)"
        )


def _seconds(t: Training) -> float:
    """Processor seconds of a step."""
    start = time.process_time()
    take_steps(t, 1, log=False)
    return time.process_time() - start


def _course(t: Training, *, batch_norm: bool = True) -> Tensors:
    """Losses, the gradient of the first step and the state after the last, by name. batch_norm:
    whether it has the statistics of its batch."""
    (without_dropout if batch_norm else still)(t.method)
    first: Tensors = {}
    step = t.optimization.step

    def noted_step() -> None:
        if not first:
            grads = {n: p.grad for n, p in t.method.named_parameters() if p.grad is not None}
            first.update((f"the gradient of {name}", g) for name, g in copied(grads).items())
        step()

    t.optimization.step = noted_step  # type: ignore[method-assign]
    taken = take_steps(t)
    losses = {"the loss": torch.tensor(taken.losses, dtype=torch.float64)}
    floating = {name: v for name, v in taken.state.items() if v.is_floating_point()}
    # Gradients that are zero but for rounding, such as those of a bias before BatchNorm, have no
    # size of their own: they are held against the largest of all.
    largest = max((float(g.abs().max()) for g in first.values()), default=1.0)
    scale = torch.tensor([largest], dtype=torch.float64)
    gradients = {name: torch.cat([g.double().flatten(), scale]) for name, g in first.items()}
    return {**losses, **gradients, **floating}
