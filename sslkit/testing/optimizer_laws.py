"""What an optimiser promises: to follow its groups, and to keep all that it needs in its state."""

from __future__ import annotations

import io
import math
from typing import Any

import torch

from sslkit.api import Optimizer

from .any_facts import FactsLaws
from .laws import law, refuse
from .optimizer_bench import OptimizerBench
from .small_runs import distance, listed, other_bits

_STEPS = 5
_DESCENT = 60
_ROUNDING = 1e-6
_LEARNING_RATES = tuple(10.0**power for power in range(-5, 2))
_MADE = ("it-makes-a-torch-optimiser-of-its-groups",)
_REPEATS = (*_MADE, "steps-repeat")


class OptimizerLaws(FactsLaws):
    """The laws of `Optimizer`, tried through the engine's own `Optimization`."""

    kind = "optimizer"

    @law(
        "return a torch.optim.Optimizer made of the groups that `create` is given, each with all "
        "of its keys"
    )
    def it_makes_a_torch_optimiser_of_its_groups(self) -> str:
        """`create` makes a torch optimiser of the given groups, with their keys, for parameters of
        any shape, and its first steps are finite."""
        bench = self._bench()
        bench.take(_STEPS)
        odd = [n for n, p in bench.parameters() if not bool(p.isfinite().all())]
        refuse(odd, f"after {_STEPS} steps {listed(odd)} are not finite")
        return type(bench.optimization.optimizer).__name__

    @law("step against the gradient: w <- w - lr * direction", needs=_MADE)
    def it_lowers_a_convex_loss(self) -> str:
        """At some learning rate it halves the squared distance from a point within a few dozen
        steps."""
        best = (math.inf, 0.0, 1.0)
        for lr in _LEARNING_RATES:
            bench = self._bench(lr=lr)
            start = bench.distance_from_goal()
            for _ in range(_DESCENT):
                bench.descend()
            found = bench.distance_from_goal()
            if math.isfinite(found):
                best = min(best, (found / start, lr, start))
        part, lr, start = best
        refuse(
            part > 0.5, f"the loss {start:.4g} came to {part * start:.4g} at the best, lr {lr:g}"
        )
        return f"{start:.3g} to {part * start:.3g} in {_DESCENT} steps at lr {lr:g}"

    @law("scale the whole step, weight decay included, by the group's lr", needs=_MADE)
    def learning_rate_zero_changes_nothing(self) -> None:
        """While the learning rate is 0, as in the first step of a warm-up, no parameter changes in
        any bit."""
        bench = self._bench(lr=0.0, weight_decay=0.1)
        before = bench.values()
        bench.take(2)
        odd = other_bits(before, bench.values())
        refuse(odd, f"at learning rate 0 it changed {listed(odd)}")

    @law(
        'read group["lr"] and group["weight_decay"] in every step: the engine sets them before '
        "each, as the schedules say",
        needs=_REPEATS,
    )
    def rules_are_read_in_every_step(self) -> None:
        """A step takes the learning rate and the weight decay that its groups have then, and not
        those that they were made with."""
        for rule, other in (("lr", 3e-3), ("weight_decay", 0.3)):
            rules = {"lr": 1e-3, "weight_decay": 0.1}
            made_with, changed_to = self._bench(**rules), self._bench(**{**rules, rule: other})
            for group, as_made in zip(changed_to.groups, made_with.groups, strict=True):
                group[rule] = as_made[rule]
            made_with.take(2)
            changed_to.take(2)
            odd = other_bits(made_with.values(), changed_to.values())
            refuse(
                odd, f"{rule} was changed before the first step, and {listed(odd)} follow the old"
            )

    @law("apply the lr of each group to that group's parameters alone", needs=_MADE)
    def groups_have_their_own_learning_rate(self) -> None:
        """A group whose learning rate is 0 stays as it is while the others are trained."""
        for still in range(2):
            bench = self._bench(weight_decay=0.0)
            for group in bench.groups:
                is_second = any(p is bench.shapes.scale for p in group["params"])
                is_second |= any(p is bench.shapes.kernel for p in group["params"])
                group["lr"] = 0.0 if is_second == bool(still) else 1e-3
            before = bench.values()
            bench.take(2)
            changed = other_bits(before, bench.values())
            stays = {"weight", "bias"} if still == 0 else {"kernel", "token", "scale"}
            odd = [name for name in changed if name in stays]
            refuse(odd, f"it trained {listed(odd)}, whose group has learning rate 0")
            left = [name for name in before if name not in stays and name not in changed]
            refuse(left, f"it left {listed(left)}, whose group has a learning rate")

    @law(
        'decay by group["weight_decay"], which is 0 for biases and normalisation parameters where '
        "the recipe leaves them out",
        needs=(*_REPEATS, "zeros-are-finite"),
    )
    def weight_decay_is_that_of_the_group(self) -> None:
        """Without a gradient weights shrink where their group has weight decay, and nothing moves
        where it has none."""
        bench = self._bench(lr=1e-3, weight_decay=0.1)
        decayed = {id(p) for g in bench.groups if g["weight_decay"] > 0.0 for p in g["params"]}
        before = bench.values()
        bench.take(3, size=0.0)
        for name, parameter in bench.parameters():
            now, was = float(parameter.detach().norm()), float(before[name].norm())
            if id(parameter) in decayed:
                refuse(
                    not now < was,
                    f"'{name}' has weight decay, and its norm {was:.6g} became {now:.6g}",
                )
            else:
                moved = distance(parameter.detach(), before[name])
                refuse(moved > 0.0, f"'{name}' has no weight decay, and moved by {moved:.2g}")

    @law(
        "take plain steps where adapt is False: no ratio of the norms of weights and gradients",
        needs=(*_REPEATS, "weight-decay-is-that-of-the-group"),
    )
    def plain_groups_are_not_adapted(self) -> None:
        """Where a group has `adapt: False` its steps do not follow the size of its weights."""
        steps = []
        for size in (1.0, 64.0):
            bench = self._bench(lr=1e-3, weight_decay=0.0, dtype=torch.float64)
            for group in bench.groups:
                group["adapt"] = False
            with torch.no_grad():
                for _, parameter in bench.parameters():
                    parameter.mul_(size)
            before = bench.values()
            bench.take(1)
            steps.append({n: p.detach() - before[n] for n, p in bench.parameters()})
        for name, small in steps[0].items():
            far = distance(steps[1][name], small)
            refuse(far > _ROUNDING, f"'{name}' 64 times as large took a step {far:.2g} parts away")

    @law("pass over parameters whose grad is None", needs=_MADE)
    def parameters_without_gradient_are_left(self) -> None:
        """A parameter that has no gradient in a step stays as it is, to the bit, and the others are
        trained."""
        bench = self._bench(weight_decay=0.1)
        bench.take(1)
        before = bench.values()
        for names in (("weight", "scale"), ("bias", "kernel")):
            bench.give_gradients()
            for name in ("token", *names):
                bench.shapes.get_parameter(name).grad = None
            bench.optimization.step()
        changed = other_bits(before, bench.values())
        refuse("token" in changed, "it moved 'token', which had no gradient, as in the step before")
        left = [name for name in before if name != "token" and name not in changed]
        refuse(left, f"it left {listed(left)}, which had a gradient")

    @law("add an epsilon where it divides by a norm or a moment", needs=_MADE)
    def zeros_are_finite(self) -> None:
        """Weights of zeros and gradients of zeros, as where a ReLU is dead, give finite steps."""
        for size in (0.0, 1.0):
            bench = self._bench(weight_decay=0.1)
            with torch.no_grad():
                for _, parameter in bench.parameters():
                    parameter.zero_()
            bench.take(2, size=size)
            bench.take(2, size=0.0)
            odd = [name for name, p in bench.parameters() if not bool(p.isfinite().all())]
            refuse(odd, f"{listed(odd)}: zeros became numbers that are not finite")

    @law("look for what is not seeded: generators of its own, clocks, sets", needs=_MADE)
    def steps_repeat(self) -> None:
        """The same steps twice have the same bits."""
        one, other = self._bench(), self._bench()
        one.take(_STEPS)
        other.take(_STEPS)
        odd = other_bits(one.values(), other.values())
        refuse(odd, f"{listed(odd)} differ after {_STEPS} steps")

    @law(
        "keep what lasts in self.state and in the groups, as torch's optimisers do: state_dict "
        "holds these and nothing else",
        needs=_REPEATS,
    )
    def state_is_complete(self) -> None:
        """An optimiser that takes over the saved state of another one goes on as that one would, to
        the bit."""
        whole = self._bench()
        whole.take(_STEPS)
        values, file = whole.values(), io.BytesIO()
        torch.save(whole.optimization.state_dict(), file)
        file.seek(0)
        second = self._bench()
        with torch.no_grad():
            for name, parameter in second.parameters():
                parameter.copy_(values[name])
        second.optimization.load_state_dict(torch.load(file, weights_only=True))
        second.taken = _STEPS
        whole.take(3)
        second.take(3)
        odd = other_bits(whole.values(), second.values())
        refuse(odd, f"three steps after taking over its state {listed(odd)} differ")

    @law(
        "make its state in the first step that is taken, from zeros, and never write to it where "
        "the step is left out",
        needs=_REPEATS,
    )
    def a_step_that_overflows_is_left_out(self) -> None:
        """A step in float16 whose gradient overflowed changes nothing, and the next one is as if it
        had not been."""
        once, after = self._bench(scaled=True), self._bench(scaled=True)
        before = after.values()
        after.give_gradients(size=math.inf)
        after.optimization.unscale()
        after.optimization.step()
        odd = other_bits(before, after.values())
        refuse(odd, f"a step with a gradient that is not finite changed {listed(odd)}")
        for bench in (once, after):
            bench.taken = 0
            scaler = bench.optimization.scaler
            assert scaler is not None
            bench.give_gradients(size=float(scaler.get_scale()))
            bench.optimization.unscale()
            bench.optimization.step()
        odd = other_bits(once.values(), after.values())
        refuse(odd, f"{listed(odd)} differ in the step after one that was left out")

    @law("give the lowest and the highest of published recipes, (low, high), or None")
    def its_usual_rates_are_a_range(self) -> str | None:
        """`usual_lr` is a range of learning rates above 0, or None, and `batch_rule` one of linear
        and sqrt."""
        cls: type[Optimizer] = self.subject.slot.cls
        refuse(cls.batch_rule not in ("linear", "sqrt"), f"batch_rule is {cls.batch_rule!r}")
        if cls.usual_lr is None:
            return None
        low, high = cls.usual_lr
        refuse(not 0.0 < low <= high < math.inf, f"usual_lr is {cls.usual_lr!r}")
        return f"{low:g} to {high:g} at 256 images, by the {cls.batch_rule} rule"

    def _bench(self, **rules: Any) -> OptimizerBench:
        return OptimizerBench(self.subject.slot.build(), **rules)
