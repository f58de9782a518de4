"""What a loss promises: a value and a gradient for any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.api import LossInput, rewards_collapse
from sslkit.randomness import seeded

from .global_random import global_random_numbers_unused
from .laws import law, refuse
from .loss_bench import (
    ROWS,
    START,
    WIDTH,
    LossBench,
    Value,
    floats,
    leaves,
    mapped,
    watching_for_stopped_gradients,
)
from .small_runs import listed

ROUNDING = 1e-5
"""The largest difference in float32 that another order of a sum makes, in parts of the loss."""
GIVES = ("it-is-a-finite-scalar", "no-global-random-numbers")
_HALF = 1e-3
_NUDGE = 1.0 + 1e-10


class LossValueLaws(LossBench):
    """The laws of what a loss gives."""

    @law("return a mean or a sum over the batch, as a floating-point tensor without dimensions")
    def it_is_a_finite_scalar(self) -> str:
        """The loss of a batch is a finite scalar in float32."""
        found = self.forward(self.made(), self.inputs())
        refuse(found.dtype != torch.float32, f"the loss is in {found.dtype}")
        refuse(not bool(found.isfinite()), f"the loss is {float(found)}")
        wide = "" if self.width == WIDTH else f" of {self.width} dimensions"
        return f"{float(found):.5g} of random embeddings{wide}"

    @law(
        'require "random" and draw from it, or with torch, whose generator the engine seeds for '
        "each step",
        needs=GIVES[:1],
    )
    def no_global_random_numbers(self) -> None:
        """It uses no global random numbers of Python or numpy, which no checkpoint holds."""
        with global_random_numbers_unused("the loss"):
            loss, given = self.made(), self.inputs()
            self.value(loss, given)
            with torch.no_grad(), seeded(0, "after"):
                dict(loss.metrics(given.detach()))
                loss.after_step(START.next(), [given.detach()])

    @law(
        "compute the loss from every view, in operations that have a gradient (no detach, no "
        "argmax, no round); what gets no gradient is a target or a teacher, and has its own part",
        needs=GIVES,
    )
    def gradients_reach_every_view(self) -> None:
        """Each view that it is given has a gradient, which is finite and not zero; where the loss
        takes `online`, each of these."""
        found = self.value(self.made(), self.inputs())
        for place, gradient in found.gradients.items():
            if not place.startswith(self.trained_part):
                continue
            refuse(gradient is None or not bool(gradient.any()), f"no gradient for {place}")
            assert gradient is not None
            refuse(not bool(gradient.isfinite().all()), f"the gradient of {place} is not finite")

    @law(
        "mend the backward pass of what is written by hand (torch.autograd.Function), or use "
        "operations of torch",
        needs=(*GIVES, "gradients-reach-every-view"),
    )
    def gradients_are_those_of_the_value(self) -> str:
        """The gradient is that of the value, by finite differences, unless it is stopped on purpose
        (detach, no_grad)."""
        given = leaves(floats(self.inputs(), Tensor.double))
        with watching_for_stopped_gradients() as stopped:
            value = self.forward(self.made().double(), given)
        nudged = self.forward(self.made().double(), floats(given.detach(), lambda x: x * _NUDGE))
        # It may compute in float32 whatever it is given, where small differences are rounded away.
        step, tolerance = (1e-5, 1e-5) if float(nudged) != float(value) else (1e-2, 2e-2)
        value.backward()  # type: ignore[no-untyped-call]
        worst = 0.0
        for place, tensor in enumerate(getattr(given, self.trained_part)):
            gradient = tensor.grad
            assert gradient is not None
            size = float(gradient.norm())
            values = [
                float(self.forward(self.made().double(), self._moved(given, place, by)))
                for by in (step * gradient / size, -step * gradient / size)
            ]
            slope = (values[0] - values[1]) / (2.0 * step)
            far = abs(slope - size) / size
            if far > tolerance and stopped:
                raise SkipTest(f"it stops gradients on purpose ({stopped[0]})")
            refuse(
                far > tolerance,
                f"along its gradient for {self.trained_part}[{place}] the loss rises by "
                f"{slope:.5g}, and the gradient says {size:.5g}",
            )
            worst = max(worst, far)
        return f"at most {worst:.1g} parts apart"

    def _moved(self, given: LossInput, place: int, by: Tensor) -> LossInput:
        views = [tensor.detach() for tensor in getattr(given, self.trained_part)]
        views[place] = views[place] + by
        changed: dict[str, Any] = {self.trained_part: tuple(views)}
        return replace(given.detach(), **changed)

    # --- What does not matter ---------------------------------------------------------------------

    @law(
        "pair rows by image, and reduce over the batch by a mean or a sum; no row is a special one",
        needs=GIVES,
    )
    def order_of_images_does_not_matter(self) -> None:
        """The same images in another order, in all that has a row for each, have the same loss."""
        given = self.inputs()
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
        rows = ("views", "online", "target", "teacher", "labels")
        other = mapped(given, lambda x: x[order], *rows)
        if given.random is not None:
            other = replace(other, random=given.random.select(order))
        self._same_loss(self.fresh(given), self.fresh(other), "in another order")

    @law(
        "average over both directions; where views play different parts, require `online` and "
        "`target` or `teacher` in place of views",
        needs=(*GIVES, "order-of-images-does-not-matter"),
    )
    def order_of_views_does_not_matter(self) -> None:
        """All views play the same part: in another order they have the same loss."""
        if self.trained_part != "views":
            raise SkipTest("it takes what is online in place of views")
        given = self.inputs()
        other = replace(given, views=given.views[::-1])
        self._same_loss(self.fresh(given), self.fresh(other), "with its views in another order")

    def _same_loss(self, one: Tensor, other: Tensor, how: str) -> None:
        far = abs(float(one) - float(other)) / max(abs(float(one)), 1e-2)
        refuse(not far <= ROUNDING, f"the loss {float(one):.7g} became {float(other):.7g} {how}")

    # --- Embeddings of every kind -----------------------------------------------------------------

    @law(
        "add an epsilon where it divides, takes a root or a logarithm, to what is under the root: "
        "the gradient must be finite, too",
        needs=(*GIVES, "gradients-reach-every-view"),
    )
    def equal_embeddings_are_finite(self) -> str:
        """Where all images have one embedding in all views, loss and gradient are finite: a
        collapse is a number that evaluators see, not an error."""
        equal = floats(self.inputs(), lambda x: torch.full_like(x, 0.5))
        return f"the loss is {float(self._finite(equal, 'of equal embeddings').loss):.5g}"

    @law(
        "add an epsilon where it divides, takes a root or a logarithm",
        needs=(*GIVES, "gradients-reach-every-view", "equal-embeddings-are-finite"),
    )
    def orthogonal_embeddings_are_finite(self) -> str:
        """Where every image has an embedding of its own, the same in all views and orthogonal to
        all others, loss and gradient are finite."""
        rows = min(ROWS, self.width)
        axes = torch.eye(self.width if self.width <= 2 * ROWS else 2 * ROWS, self.width)
        given = floats(self.inputs(rows=rows), lambda x: axes[: len(x)].clone())
        if given.negatives is not None and len(axes) > rows:
            given = replace(given, negatives=axes[rows:].clone())
        return f"the loss is {float(self._finite(given, 'of orthogonal embeddings').loss):.5g}"

    @law(
        "normalise by sslkit.nn.numerics.normalize, which gives a row of zeros a gradient of zeros",
        needs=(*GIVES, "gradients-reach-every-view", "equal-embeddings-are-finite"),
    )
    def zeros_are_finite(self) -> None:
        """Embeddings of zeros, as behind a dead ReLU, have a finite loss and a finite gradient, be
        it one of them or all."""

        def one_zero(x: Tensor) -> Tensor:
            x = x.clone()
            x[0] = 0.0
            return x

        self._finite(floats(self.inputs(), one_zero), "where one embedding is zero")
        self._finite(floats(self.inputs(), torch.zeros_like), "where all embeddings are zero")

    @law(
        "subtract the maximum before exp (torch.logsumexp, cross_entropy), and take norms before "
        "products",
        needs=(*GIVES, "gradients-reach-every-view"),
    )
    def any_scale_is_finite(self) -> str:
        """Embeddings ten thousand times as large, and a million times as small, have a finite loss
        and a finite gradient."""
        large, small = (
            float(self._finite(self.inputs(scale=scale), f"of embeddings of size {scale:g}").loss)
            for scale in (1e4, 1e-6)
        )
        return f"{large:.4g} at 1e4, {small:.4g} at 1e-6"

    @law(
        "divide by the number of rows, not by one less, or guard what is left of a small batch",
        needs=(*GIVES, "gradients-reach-every-view"),
    )
    def two_images_are_enough(self) -> str:
        """A batch of two images has a finite loss and a finite gradient."""
        return f"the loss is {float(self._finite(self.inputs(rows=2), 'of two images').loss):.5g}"

    def _finite(self, given: LossInput, of: str) -> Value:
        found = self.value(self.made(), given)
        refuse(not bool(found.loss.isfinite()), f"the loss {of} is {float(found.loss)}")
        odd = [p for p, g in found.gradients.items() if g is not None and not g.isfinite().all()]
        refuse(odd, f"the gradient {of} is not finite for {listed(odd)}")
        return found

    # --- Precision --------------------------------------------------------------------------------

    @law(
        "begin with x.float(), or full_precision of sslkit.nn.numerics",
        needs=GIVES,
    )
    def half_precision_is_taken_in(self) -> None:
        """Embeddings in bf16 have the loss of the same numbers in float32, in float32."""
        half = floats(self.inputs(), lambda x: x.to(torch.bfloat16))
        whole, found = self.fresh(floats(half, Tensor.float)), self.fresh(half)
        refuse(found.dtype != torch.float32, f"of embeddings in bf16 the loss is in {found.dtype}")
        far = abs(float(whole) - float(found)) / max(abs(float(whole)), 1e-2)
        refuse(
            not far <= _HALF,
            f"the loss {float(whole):.6g} of embeddings in float32 is {float(found):.6g} of the "
            "same in bf16",
        )

    def notes(self) -> Iterator[str]:
        """Whether it keeps images apart, and whether an autocast around it changes it: the engine
        calls it outside of one, other programs may not."""
        given = self.inputs()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.fresh(given)
        if found.dtype != torch.float32 or float(found) != float(self.fresh(given)):
            yield (
                "within an autocast to bf16 it has another value, which no run of sslkit sees; "
                "sslkit.nn.numerics.without_autocast keeps it in float32 everywhere"
            )
        if self.trained_part == "views" and rewards_collapse(self.made()):
            yield (
                "equal embeddings have no higher a loss than those that are apart: nothing in it "
                "keeps images apart, so the method has to (a teacher, a predictor)"
            )
