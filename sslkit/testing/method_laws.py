"""What a method promises about a single step."""

from __future__ import annotations

import random as python_random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor

from .held_state import changes, held, size_of
from .laws import law, refuse
from .method_bench import MethodBench, reordered
from .small_runs import (
    STEPS,
    batches,
    copied,
    distance,
    farthest,
    listed,
    other_bits,
    take_steps,
)

ROUNDING = 1e-9
"""The largest difference in float64 that rounding makes, in parts of the largest value."""
_STEP = ("trains",)
_SAME = ("trains", "no-global-random-numbers")
"""What is needed where two computations are compared,"""
_DOUBLE = ("constants-follow-their-inputs",)
"""and where they are in float64."""


class MethodLaws(MethodBench):
    """The laws of `Method`, each tried with the engine or as the engine calls it."""

    @law(
        "see the message; the steps are those of `sslkit run`, on the CPU in float32",
        needs=("its-configuration-can-be-written-and-read",),
    )
    def trains(self) -> str:
        """It takes the first steps of a small run: shapes are as announced, loss and weights are
        finite."""
        taken = take_steps(self.runs.training())
        return f"losses {', '.join(f'{loss:.4g}' for loss in taken.losses)}"

    @law(
        "draw from batch.random, by sample (in an objective torch's generator will do, which is "
        "seeded for each step)",
        needs=_STEP,
    )
    def no_global_random_numbers(self) -> None:
        """A step uses no global random numbers of Python or numpy, which no checkpoint holds."""
        t = self.trained()
        before = _generators()
        take_steps(t, 2)
        moved = [name for name, state in _generators().items() if state != before[name]]
        refuse(moved, f"a step moves the global random numbers of {', '.join(moved)} on")

    @law(
        "make constants and random numbers in the type, and on the device, of what they meet: "
        "torch.randn(..., dtype=z.dtype, device=z.device)",
        needs=_SAME,
    )
    def constants_follow_their_inputs(self) -> None:
        """Steps work in float64 too: nothing is of a fixed type, which would be of a fixed device
        as well."""
        t = self.runs.training(torch.float64)
        batch = next(batches(t))
        embeddings = self.embed(t, batch)
        loss = self.objective(t, embeddings, batch).loss
        refuse(loss.dtype != torch.float64, f"the loss of float64 networks is in {loss.dtype}")
        loss.backward()  # type: ignore[no-untyped-call]

    # --- Gradients --------------------------------------------------------------------------------

    @law(
        "leave out of param_groups what is not trained (requires_grad_(False)), and use the rest",
        needs=_STEP,
    )
    def gradients_reach_what_is_trained(self) -> str:
        """Every parameter that `param_groups` names has a gradient that is not zero within a few
        steps."""
        t = self.runs.training()
        trained = dict(p for group in t.method.param_groups() for p in group.params)
        reached: set[str] = set()

        def note(name: str) -> Any:
            def noted(parameter: Tensor) -> None:
                if parameter.grad is not None and bool(parameter.grad.any()):
                    reached.add(name)

            return noted

        for name, parameter in trained.items():
            parameter.register_post_accumulate_grad_hook(note(name))  # type: ignore[no-untyped-call]
        take_steps(t)
        silent = [name for name in trained if name not in reached]
        refuse(silent, f"in {STEPS} steps no gradient for {listed(silent)}")
        return f"{len(trained)} parameters"

    @law(
        "keep a teacher out of param_groups and of the graph, as EMATeacher of sslkit.nn.ema is",
        needs=_DOUBLE,
    )
    def no_gradient_trains_a_teacher(self) -> None:
        """What `before_step` and `after_step` make follow other weights is not trained by the
        optimiser as well."""
        t = self.runs.training(torch.float64)
        take_steps(t, 2)
        batch = next(batches(t))
        output = self.objective(t, self.embed(t, batch), batch)
        trained = {n: p for group in t.method.param_groups() for n, p in group.params}
        start = copied(t.method.state_dict())

        def moved(shift: float, fixed: frozenset[str] = frozenset()) -> dict[str, Tensor]:
            """The parameters after the hooks, from a state whose other parameters are shifted."""
            with torch.no_grad():
                t.method.load_state_dict(start)
                for name, parameter in trained.items():
                    if name not in fixed:
                        parameter.add_(shift * (1.0 + parameter.abs()))
                self.hooks(t, output)
                return copied(trained)

        after = moved(0.0)
        changed = frozenset(n for n in trained if distance(after[n], start[n]) > 0.0)
        followed = moved(0.5, fixed=changed) if changed else after
        with torch.no_grad():
            t.method.load_state_dict(start)
        led = [name for name in changed if distance(followed[name], after[name]) > ROUNDING]
        refuse(led, f"the optimiser trains {listed(sorted(led))}, which follows other weights")

    # --- What changes when ------------------------------------------------------------------------

    @law(
        "change it in after_step, and hand what it needs on as StepOutput.carry; in embed only the "
        "statistics of BatchNorm change",
        needs=_STEP,
    )
    def embed_changes_no_state(self) -> None:
        """`embed` changes no parameter, no buffer and no attribute but the statistics of
        BatchNorm."""
        t = self.trained()
        first, second = batches(t, 2)
        self.embed(t, first)  # what is made once and kept, such as a grid of positions
        before = held(t.method)
        self.embed(t, second)
        found = changes(before, held(t.method))
        refuse(found, f"embed changed {listed(found)}")

    @law("change it in after_step, and hand what it needs on as StepOutput.carry", needs=_STEP)
    def objective_changes_no_state(self) -> None:
        """`objective` changes no parameter, no buffer and no attribute, metrics included."""
        t = self.trained()
        first, second = batches(t, 2)
        self.objective(t, self.embed(t, first), first)
        embeddings = self.embed(t, second)
        before = held(t.method)
        dict(self.objective(t, embeddings, second).metrics)
        found = changes(before, held(t.method))
        refuse(found, f"objective changed {listed(found)}")

    @law(
        "draw from batch.random, which is keyed by the sample: the same in any batch",
        needs=(*_DOUBLE, "embed-changes-no-state"),
    )
    def embed_draws_by_sample(self) -> None:
        """What `embed` draws is keyed by the sample: torch's generator has no part in it, but for
        layers such as dropout."""
        t = self.still()
        batch = next(batches(t))
        one, other = (self.embed(t, batch, stream) for stream in ("one", "other"))
        name, far = farthest(one, other)
        refuse(far > 0.0, f"'{name}' follows torch's global generator")

    @law(
        "compute the entries of embed row by row; what goes over the batch belongs into objective",
        needs=("embed-draws-by-sample",),
    )
    def embed_treats_rows_alone(self) -> None:
        """`embed` gives a sample the same in any batch and at its own place: of a part of a batch,
        that part's rows (BatchNorm aside)."""
        t = self.still()
        batch = next(batches(t))
        half = len(batch) // 2
        whole = self.embed(t, batch)
        parts = [self.embed(t, batch.select(r)) for r in (slice(half), slice(half, None))]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        name, far = farthest(joined, whole)
        refuse(far > ROUNDING, f"'{name}' of two halves is {far:.2g} away from that of the whole")

    @law(
        "pair rows by image: labels, targets and batch.random have one row for each image, in the "
        "order of every view",
        needs=("embed-treats-rows-alone", "objective-changes-no-state"),
    )
    def loss_does_not_depend_on_order(self) -> None:
        """The same images in another order have the same loss."""
        t = self.still()
        batch = next(batches(t))
        order = torch.arange(len(batch)).roll(3).flip(0)
        losses = [
            float(self.objective(t, self.embed(t, given), given).loss)
            for given in (batch, reordered(batch, order))
        ]
        far = abs(losses[0] - losses[1]) / max(abs(losses[0]), 1e-6)
        refuse(far > 1e-7, f"the loss {losses[0]:.6g} became {losses[1]:.6g}")

    @law(
        "set requires_labels = True, or take no part of batch.labels",
        needs=(*_SAME, "objective-changes-no-state"),
    )
    def labels_are_asked_for(self) -> None:
        """Without `requires_labels` it neither needs labels nor looks at them."""
        t = self.trained()
        if t.method.requires_labels:
            raise SkipTest("it trains with labels, and says so")
        batch = next(batches(t))
        if batch.labels is None:
            raise SkipTest("the data of the recipe has no labels")
        embeddings = self.embed(t, batch)
        others = (batch.labels, (batch.labels + 1) % 3, None)
        losses = [
            float(self.objective(t, embeddings, replace(batch, labels=labels)).loss)
            for labels in others
        ]
        refuse(len(set(losses)) > 1, f"other labels changed the loss from {losses[0]} to {losses}")

    @law(
        "keep what lasts in buffers of a fixed size; StepOutput.carry hands on the rest",
        needs=_STEP,
    )
    def memory_does_not_grow(self) -> None:
        """What it holds takes no more memory from step to step."""
        t, sizes = self.trained(), []
        for _ in range(3):
            sizes.append(size_of(held(t.method)))
            take_steps(t, 1)
        refuse(
            sizes[0] < sizes[1] < sizes[2],
            f"{sizes[0]:,}, {sizes[1]:,}, {sizes[2]:,} values after three steps in turn",
        )

    # --- Embeddings and metrics -------------------------------------------------------------------

    @law(
        "name in must_not_collapse what keeps images apart in a healthy run, by the keys of embed",
        needs=_STEP,
    )
    def collapse_is_watched(self) -> str:
        """The entries of `embed` by which a collapse is seen are there: floating-point, one row for
        each image."""
        t = self.trained()
        batch = next(batches(t))
        embeddings = self.embed(t, batch)
        watched = t.method.must_not_collapse
        named = [name for name in embeddings if name != "features"] if watched is None else watched
        refuse(not named, f"embed gives {', '.join(embeddings)} alone, so that nothing is watched")
        missing = [name for name in named if name not in embeddings]
        refuse(missing, f"embed gives {', '.join(embeddings)}, and not {listed(missing)}")
        odd = [
            name
            for name in named
            if embeddings[name].ndim < 2 or not embeddings[name].is_floating_point()
        ]
        refuse(odd and watched is not None, f"{listed(odd)}: no floating-point (B, ..., D)")
        return f"watches {', '.join(named)}"

    @law("add an epsilon where it divides, or takes a root or a logarithm", needs=_STEP)
    def collapse_is_finite(self) -> None:
        """Where all images have one embedding, loss and gradient are finite: a collapse is a number
        that evaluators see, not an error."""
        t = self.trained()
        batch = next(batches(t))
        equal = {
            name: value[:1].detach().expand_as(value).clone().requires_grad_(value.requires_grad)
            for name, value in self.embed(t, batch).items()
        }
        output = self.objective(t, equal, batch)
        refuse(not bool(output.loss.isfinite()), f"the loss is {float(output.loss)}")
        output.loss.backward()  # type: ignore[no-untyped-call]
        odd = [n for n, v in equal.items() if v.grad is not None and not v.grad.isfinite().all()]
        refuse(odd, f"the gradient of {listed(odd)} is not finite")

    @law(
        "compute metrics in objective from what it is given; what is kept from an earlier step "
        "belongs to another batch",
        needs=("state-is-complete", "objective-changes-no-state"),
    )
    def metrics_are_of_their_step(self) -> str:
        """Metrics follow from the state and the embeddings of their step alone."""
        t, again = self.trained(), self.restored()
        batch = next(batches(t))
        embeddings = self.embed(t, batch)
        mine, others = (
            {n: float(v) for n, v in self.objective(each, embeddings, batch).metrics.items()}
            for each in (t, again)
        )
        if not mine and not others:
            raise SkipTest("it has no metrics")
        odd = sorted(n for n in mine.keys() | others.keys() if not _equal(mine, others, n))
        refuse(
            odd,
            f"{listed(odd)}: {mine.get(odd[0]) if odd else 0} where the method trained on, "
            f"{others.get(odd[0]) if odd else 0} where its state was restored",
        )
        return ", ".join(mine)

    @law(
        "keep what lasts in parameters and buffers (register_buffer), which checkpoints hold",
        needs=("steps-repeat",),
    )
    def state_is_complete(self) -> None:
        """A method that takes over another one's `state_dict` goes on as that one would."""
        t, again = self.trained(), self.restored()
        batch = next(batches(t))
        losses = []
        for each in (t, again):
            output = self.objective(each, self.embed(each, batch), batch)
            losses.append(float(output.loss))
            with torch.no_grad():
                self.hooks(each, output)
        refuse(losses[0] != losses[1], f"the loss {losses[0]:.9g} became {losses[1]:.9g}")
        odd = other_bits(t.method.state_dict(), again.method.state_dict())
        refuse(odd, f"a step later {listed(odd)} differ")


def _equal(one: Mapping[str, float], other: Mapping[str, float], name: str) -> bool:
    return name in one and name in other and repr(one[name]) == repr(other[name])


def _generators() -> dict[str, str]:
    return {
        "numpy": str(np.random.get_state(legacy=True)),  # noqa: NPY002  (others use it)
        "Python": str(python_random.getstate()),
    }
