"""What a loss promises about its state, what it is given, and what it says beside its value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit import installed_components
from sslkit.api import Loss, LossInput, ScheduledNumber, resolve_component
from sslkit.engine.contract import metric_fault
from sslkit.randomness import seeded

from .held_state import changes, held
from .laws import law, refuse
from .loss_bench import START, leaves, mapped, tensors
from .loss_laws import GIVES, LossValueLaws
from .small_runs import copied, listed, other_bits

_STEPS = 3


class LossLaws(LossValueLaws):
    """The laws of `Loss`."""

    @law(
        "change buffers in after_step, which is given what forward was, once for each step",
        needs=GIVES,
    )
    def forward_changes_no_state(self) -> None:
        """Neither `forward` nor `metrics` changes a parameter, a buffer or an attribute."""
        loss, first, second = self.made(), self.inputs(), self.inputs(1)
        self.value(loss, first)  # what is made once and kept, such as a mask
        self._metrics(loss, first)
        before = held(loss)
        self.value(loss, second)
        found = changes(before, held(loss))
        refuse(found, f"forward changed {listed(found)}")
        self._metrics(loss, second)
        found = changes(before, held(loss))
        refuse(found, f"metrics changed {listed(found)}")

    @law(
        "work on copies: x = x / norm, and not x /= norm; others may read the same tensors",
        needs=GIVES,
    )
    def what_it_is_given_is_left(self) -> None:
        """No tensor that it is given is changed, by `forward`, `metrics` or `after_step`."""
        loss, given = self.made(), self.inputs()
        before = copied(dict(tensors(given)))
        self.forward(loss, given)
        self._metrics(loss, given)
        self._step(loss, given)
        odd = other_bits(before, dict(tensors(given)))
        refuse(odd, f"it changed {listed(odd)} in place")

    @law(
        "keep nothing of a call in the module; a method may call its loss once for each pair of "
        "views",
        needs=(*GIVES, "forward-changes-no-state", "what-it-is-given-is-left"),
    )
    def it_may_be_called_several_times(self) -> None:
        """Several calls in a step have the losses and the gradients of each alone, before and after
        one backward pass for all of them."""
        loss, one, other = self.made(), leaves(self.inputs()), leaves(self.inputs(1))
        alone = [self.value(self.made(), given) for given in (one, other)]
        together = [self.forward(loss, given) for given in (one, other)]
        total = together[0] + together[1]
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for each, found, given in zip(alone, together, (one, other), strict=True):
            refuse(
                float(each.loss) != float(found),
                f"the loss {float(each.loss):.7g} is {float(found):.7g} beside another call",
            )
            now = {p: t.grad for p, t in tensors(given) if t.grad is not None}
            was = {p: g for p, g in each.gradients.items() if g is not None}
            odd = other_bits(was, now)
            refuse(odd, f"the gradient of {listed(odd)} is another one beside another call")

    @law(
        "register_buffer what after_step changes: state_dict, which checkpoints hold, has buffers "
        "and parameters alone",
        needs=(*GIVES, "forward-changes-no-state"),
    )
    def state_is_complete(self) -> str:
        """A loss that takes over another one's `state_dict`, after some steps, goes on as that one
        would, to the bit."""
        loss, again = self.made(), self.made(seed=1)
        given = [self.inputs(seed) for seed in range(2 * _STEPS)]
        before = copied(loss.state_dict())
        for each in given[:_STEPS]:
            self._step(loss, each)
        again.load_state_dict(loss.state_dict())
        changing = other_bits(before, loss.state_dict())
        for each in given[_STEPS:]:
            losses = [float(self.forward(one, each)) for one in (loss, again)]
            refuse(losses[0] != losses[1], f"the loss {losses[0]:.9g} became {losses[1]:.9g}")
            self._step(loss, each)
            self._step(again, each)
        odd = other_bits(loss.state_dict(), again.state_dict())
        refuse(odd, f"{listed(odd)} differ after {_STEPS} more steps")
        return f"after_step changes {listed(changing)}" if changing else "it has no such state"

    # --- What it is given -------------------------------------------------------------------------

    @law(
        'put "labels" into `requires`, or take no part of inputs.labels: without it a method may '
        "give none",
        needs=GIVES,
    )
    def labels_are_asked_for(self) -> None:
        """Without "labels" in `requires` it neither needs labels nor looks at them."""
        if "labels" in self.requires:
            raise SkipTest("it requires labels, and says so")
        given = self.inputs()
        assert given.labels is not None
        usual = float(self.fresh(given))
        for words, labels in (("other", given.labels.flip(0) % 3), ("no", None)):
            found = float(self.fresh(replace(given, labels=labels)))
            refuse(usual != found, f"with {words} labels the loss {usual:.7g} became {found:.7g}")

    @law("leave out of `requires` what the loss makes nothing of", needs=GIVES)
    def what_it_requires_matters(self) -> str:
        """Every part in `requires` has an effect: another one has another loss."""
        given, other = self.inputs(), self.inputs(1)
        if not self.requires:
            raise SkipTest("it requires views alone")
        usual = float(self.fresh(given))
        for part in sorted(self.requires):
            with_another = replace(given, **{part: getattr(other, part)})
            if part == "labels":
                with_another = mapped(given, lambda x: x.roll(1), "labels")
            found = float(self.fresh(with_another))
            refuse(usual == found, f"another '{part}' leaves the loss at {usual:.7g}")
        return ", ".join(sorted(self.requires))

    @law(
        "read it where it is used, as self.config.temperature.at(inputs.progress), and not in "
        "__init__",
        needs=GIVES,
    )
    def numbers_follow_their_schedule(self) -> str:
        """A number of its configuration that follows a schedule has in each step the value of that
        step."""
        names = list(self._scheduled())
        if not names:
            raise SkipTest("none of its numbers may follow a schedule")
        for name in names:
            number: ScheduledNumber = getattr(self.subject.slot.config, name)
            falling = _falling(number)
            given = self.inputs()
            for step in (START, replace(START, step=START.total_steps // 2)):
                constant = ScheduledNumber(falling.at(step), bounds=number.bounds)
                at = replace(given, progress=step)
                found, wanted = (
                    float(self.forward(self.made({name: each}), at)) for each in (falling, constant)
                )
                refuse(
                    found != wanted,
                    f"in step {step.step} `{name}` is {constant.start:g}, and the loss {found:.7g} "
                    f"where a constant {constant.start:g} has {wanted:.7g}",
                )
        return ", ".join(names)

    def _scheduled(self) -> Iterator[str]:
        config = self.subject.slot.config
        for name in type(config).model_fields:
            if isinstance(getattr(config, name), ScheduledNumber):
                yield name

    # --- Metrics ----------------------------------------------------------------------------------

    @law(
        "return tensors of one element under names; what follows from parameters of the loss is "
        "computed under torch.no_grad",
        needs=(*GIVES, "what-it-is-given-is-left"),
    )
    def metrics_are_numbers_without_gradient(self) -> str:
        """`metrics` gives finite scalars without gradient where its input has none, under names
        that the engine does not use itself."""
        found = self._metrics(self.made(), self.inputs())
        for name, value in found.items():
            what = f"the metric {name!r}"
            refuse(fault := metric_fault(name), f"{what}: {fault}")
            is_tensor = isinstance(value, Tensor)
            refuse(not is_tensor or value.numel() != 1, f"{what} is no tensor of one element")
            refuse(value.requires_grad, f"{what} has a gradient")
            refuse(not bool(value.isfinite()), f"{what} is {float(value)}")
        if not found:
            raise SkipTest("it has no metrics")
        return ", ".join(f"{name} {float(value):.4g}" for name, value in found.items())

    def _metrics(self, loss: Loss, given: LossInput) -> dict[str, Tensor]:
        with seeded(0, "metrics"):
            return dict(loss.metrics(given))

    def _step(self, loss: Loss, given: LossInput) -> None:
        """As the engine ends a step in which it was called twice."""
        with torch.no_grad(), seeded(0, "after_step"):
            given = given.detach()
            loss.after_step(START.next(), [given, given])


def _falling(number: ScheduledNumber) -> ScheduledNumber:
    """A number that falls over the run from where it starts to half of that, or to a permitted
    value."""
    slot = resolve_component(installed_components(), "schedule", {"name": "linear"})
    end = 0.5 * number.start if number.start else 0.5
    if number.bounds.broken(end):
        end = number.end
    return ScheduledNumber(number.start, end, slot, number.bounds)
