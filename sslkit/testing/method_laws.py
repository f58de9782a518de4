"""What a method promises about a single step: types, gradients, and what changes when."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from unittest import SkipTest

import torch
from torch import Tensor, nn

from sslkit.api import Method
from sslkit.engine.training import Training
from sslkit.experiment.networks import make_for_encoder, make_method

from .followers import Followers
from .global_random import global_random_numbers_unused
from .held_state import changes, held, size_of
from .laws import law, refuse
from .method_bench import MethodBench
from .mixed_types import mixed_types
from .small_runs import (
    batches,
    copied,
    listed,
    other_bits,
    same,
    take_steps,
    watch_gradients,
)

STEP = ("trains",)
SAME = ("trains", "no-global-random-numbers")
"""What is needed where two computations are compared,"""
DOUBLE = ("constants-follow-their-inputs",)
"""and where they are in float64."""
_EPOCHS, _MOST_STEPS = 2, 40
"""How long a parameter may stand still that is to be trained."""


class MethodLaws(MethodBench):
    """The laws of `Method`, each tried with the engine or as the engine calls it."""

    @law(
        "see the message; the steps are those of `sslkit run`, on the CPU in float32. Where the "
        "kit's own recipe does not suit it (two views of 16 pixels, a small ResNet), give one that "
        "does, --recipe or checks(..., recipe=...), and let `problems` say what it takes",
        needs=("its-configuration-can-be-written-and-read",),
    )
    def trains(self) -> str:
        """It takes the first steps of a small run: shapes are as announced, loss and weights are
        finite."""
        taken = take_steps(self.runs.training())
        odd = [name for name, value in taken.state.items() if not bool(value.isfinite().all())]
        refuse(odd, f"{listed(odd)} is not finite after losses {taken.losses}")
        return f"losses {', '.join(f'{loss:.4g}' for loss in taken.losses)}"

    @law(
        "draw from batch.random, by sample, and in the constructor from torch's generator, which "
        "is seeded there (in an objective too: for what is of the step, not of an image)",
        needs=STEP,
    )
    def no_global_random_numbers(self) -> None:
        """Neither the constructor nor a step uses the global random numbers of Python or numpy,
        which no checkpoint holds."""
        with global_random_numbers_unused("making it"):
            t = self.runs.training()
        with global_random_numbers_unused("a step"):
            take_steps(t, 2)

    @law(
        "make constants and random numbers in the type, and on the device, of what they meet, "
        "torch.randn(..., dtype=z.dtype, device=z.device), or buffers of them (register_buffer), "
        "and leave out .float(): embeddings come in full precision",
        needs=SAME,
    )
    def constants_follow_their_inputs(self) -> None:
        """Steps work in float64 too: nothing is of a fixed type, which would be of a fixed device
        as well."""
        t = self.ready(self.runs.training(torch.float64))
        batch = next(batches(t))
        with mixed_types() as mixed:
            output = self.objective(t, self.embed(t, batch), batch)
        loss = output.loss
        refuse(loss.dtype != torch.float64, f"the loss of float64 networks is in {loss.dtype}")
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.hooks(t, output)
        # Made in float32 on the device of what it meets, a constant is harmless.
        plain = [
            name
            for name, value in held(t.method).items()
            if isinstance(value, Tensor) and value.ndim and value.dtype == torch.float32
        ]
        refuse(
            mixed and plain,
            f"{listed(mixed)} takes float32 and float64 together; in float32 is {listed(plain)}, "
            "which is no buffer",
        )

    # --- Gradients --------------------------------------------------------------------------------

    @law(
        "leave out of param_groups what is not trained (requires_grad_(False)), and use the rest; "
        "what is frozen at first needs a recipe with few steps in an epoch",
        needs=STEP,
    )
    def gradients_reach_what_is_trained(self) -> str:
        """Every parameter that `param_groups` names has a gradient that is not zero within the
        first two epochs."""
        t = self.runs.training()
        start = copied(t.method.state_dict())
        trained = {n: p for group in t.method.param_groups() for n, p in group.params}
        silent = dict(trained)

        def see() -> None:
            for name, parameter in list(silent.items()):
                if parameter.grad is not None and bool(parameter.grad.any()):
                    del silent[name]

        watch_gradients(t, see)
        most = min(_EPOCHS * t.progress.steps_per_epoch + 1, _MOST_STEPS)
        while t.progress.step < 2 or (silent and t.progress.step < most):
            take_steps(t, 1)
        led = self._led_if_known() if silent else []
        names = [name for name in silent if name not in led]
        refuse(names, f"in {t.progress.step} steps no gradient for {listed(names)}")
        return f"{len(trained)} parameters{_left_alone(t, trained, start)}"

    @law(
        "keep a teacher out of param_groups and of the graph, as EMATeacher of sslkit.nn.ema is",
        needs=DOUBLE,
    )
    def no_gradient_trains_a_teacher(self) -> str:
        """What `before_step` and `after_step` make follow other weights is not trained by the
        optimiser as well."""
        led = self._followers.trained()
        refuse(led, f"the optimiser trains {listed(led)}, which follows other weights")
        idle = self._followers.idle()
        return f"{listed(idle)}: moved by the method, without a part in the loss" if idle else ""

    @cached_property
    def _followers(self) -> Followers:
        return Followers(self)

    def _led_if_known(self) -> list[str]:
        """Trained parameters that follow others, which is another law's fault; none where they
        cannot be found, which is another's, too."""
        with suppress(Exception):
            return self._followers.trained()
        return []

    @law(
        "return the backbone that is trained from `encoder`, or the one of the teacher that "
        "follows it, and from `projection_layers` the layers that its features pass",
        needs=("gradients-reach-what-is-trained",),
    )
    def encoder_is_trained(self) -> None:
        """`encoder`, which is evaluated and exported, is a part of the method that steps change,
        and `projection_layers` takes its features."""
        t = self.runs.training()
        before = copied(dict(t.method.encoder.named_parameters()))
        batch = next(batches(t))
        take_steps(t)
        encoder = t.method.encoder
        held_by_method = {id(p) for p in t.method.parameters()}
        apart = [n for n, p in encoder.named_parameters() if id(p) not in held_by_method]
        refuse(apart, f"{listed(apart)} of the encoder is no parameter of the method")
        same_bits = not other_bits(before, copied(dict(encoder.named_parameters())))
        refuse(same_bits, f"{t.progress.step} steps changed no parameter of the encoder")
        with torch.no_grad():
            values = encoder(batch.views[0])
            for layer in t.method.projection_layers:
                values = layer(values)

    @law(
        "make `encoder` and `projection_layers` in for_encoder as the constructor does, before "
        "anything else that draws random numbers, and have load_state_dict pass over what was "
        "left out (register_load_state_dict_pre_hook)",
        needs=("encoder-is-trained", "state-is-complete"),
    )
    def encoder_alone_is_the_same(self) -> None:
        """`for_encoder` makes `encoder` and `projection_layers` as the constructor does, and takes
        the state of a whole method."""
        trained, run = self.begun().method, self.runs.build()
        whole, alone = (make(run.recipe, run.facts) for make in (make_method, make_for_encoder))
        differ = other_bits(_encoder_of(whole), _encoder_of(alone))
        refuse(differ, f"for_encoder starts with other values of {listed(differ)}")
        alone.load_state_dict(trained.state_dict())
        differ = other_bits(_encoder_of(trained), _encoder_of(alone))
        refuse(differ, f"for_encoder took over other values of {listed(differ)}")

    # --- What changes when ------------------------------------------------------------------------

    @law(
        "work on copies: x = x - m in place of x -= m or x.sub_(m), .clone() before x[...] = y",
        needs=STEP,
    )
    def what_it_is_given_stays(self) -> None:
        """`embed` and `objective` change nothing that they are given: views, labels, targets and
        embeddings, of which others read the same memory."""
        t = self.trained()
        batch = next(batches(t))
        tensors = {f"view {number}": view for number, view in enumerate(batch.views)}
        tensors |= {f"target '{name}'": target for name, target in batch.targets.items()}
        tensors |= {} if batch.labels is None else {"labels": batch.labels}
        tensors |= {"indices": batch.indices}
        before = copied(tensors)
        embeddings = self.embed(t, batch)
        odd = other_bits(before, tensors)
        refuse(odd, f"embed changed {listed(odd)} of its batch")
        before |= copied({f"embedding '{name}'": value for name, value in embeddings.items()})
        self.objective(t, embeddings, batch)
        tensors |= {f"embedding '{name}'": value for name, value in embeddings.items()}
        odd = other_bits(before, tensors)
        refuse(odd, f"objective changed {listed(odd)}")

    @law(
        "change it in after_step, and hand what it needs on as StepOutput.carry; in embed only the "
        "statistics of BatchNorm change",
        needs=STEP,
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

    @law(
        "change it in after_step, and hand what it needs on as StepOutput.carry; state of a loss "
        "changes in Loss.after_step, which StepOutput.losses leads to",
        needs=STEP,
    )
    def objective_changes_no_state(self) -> None:
        """`objective` changes no parameter, no buffer and no attribute, metrics included."""
        t = self.trained()
        first, second = batches(t, 2)
        self.objective(t, self.embed(t, first), first)
        embeddings = self.embed(t, second)
        before = held(t.method)
        self.metrics(t, embeddings, second)
        found = changes(before, held(t.method))
        refuse(found, f"objective changed {listed(found)}")

    @law(
        "keep what lasts in parameters and buffers (register_buffer), which checkpoints hold, made "
        "in the constructor; schedules follow from progress",
        needs=("steps-repeat", "what-it-is-given-stays"),
    )
    def state_is_complete(self) -> None:
        """A method that takes over another one's `state_dict` goes on as that one would."""
        twins = self.twins()
        batch = next(batches(twins[0]))
        losses = []
        for each in twins:
            output = self.objective(each, self.embed(each, batch), batch)
            losses.append(float(output.loss))
            with torch.no_grad():
                self.hooks(each, output)
        refuse(
            losses[0] != losses[1],
            f"the loss {losses[0]:.9g} is {losses[1]:.9g} where the state was taken over",
        )
        odd = other_bits(*(each.method.state_dict() for each in twins))
        refuse(odd, f"{listed(odd)} differ one step after the state was taken over")

    @law(
        "compute metrics in objective from what it is given; what is kept from an earlier step "
        "belongs to another batch",
        needs=("state-is-complete", "objective-changes-no-state"),
    )
    def metrics_are_of_their_step(self) -> str:
        """Metrics follow from the state and the embeddings of their step alone."""
        t, again = self.twins()
        batch = next(batches(t))
        embeddings = self.embed(t, batch)
        mine, others = (self.metrics(each, embeddings, batch) for each in (t, again))
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
        "keep what lasts in buffers of a fixed size; StepOutput.carry hands on the rest",
        needs=("state-is-complete",),
    )
    def memory_does_not_grow(self) -> None:
        """What it holds takes no more memory from step to step."""
        t = self.begun()
        sizes = [size_of(held(t.method))]
        most = _EPOCHS * t.progress.steps_per_epoch + 2
        while t.progress.step < min(most, _MOST_STEPS):
            take_steps(t, 1)
            sizes.append(size_of(held(t.method)))
            if sizes[-1] <= sizes[-2]:
                return
        refuse(True, f"{sizes[0]:,} values after 2 steps, {sizes[-1]:,} after {t.progress.step}")


def _encoder_of(method: Method) -> dict[str, Tensor]:
    """What is evaluated and exported of a method."""
    parts = nn.ModuleDict({"encoder": method.encoder})
    parts["projection_layers"] = nn.ModuleList(method.projection_layers)
    return copied(parts.state_dict())


def _left_alone(t: Training, trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> str:
    """Says which parameters are neither trained nor moved by the hooks of the method."""
    left = [
        name
        for name, parameter in t.method.named_parameters()
        if name not in trained and same(parameter, start.get(name, parameter))
    ]
    return f"; left as they began: {listed(left)}" if left else ""


def _equal(one: Mapping[str, float], other: Mapping[str, float], name: str) -> bool:
    return name in one and name in other and repr(one[name]) == repr(other[name])
