"""What a method promises of the samples of a batch: each by itself in `embed`, all together in
`objective`, whatever their order, and apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.api import Batch
from sslkit.engine.training import Training

from .laws import UntriedError, law, refuse
from .method_bench import reordered
from .method_laws import DOUBLE, SAME, STEP, MethodLaws
from .small_runs import ROUNDING, batches, farthest, listed

_LOSS_ROUNDING = 1e-7


class SampleLaws(MethodLaws):
    """The laws of `Method` on the samples of a batch."""

    @law(
        "draw from batch.random, which is keyed by the sample: the same in any batch",
        needs=(*DOUBLE, "embed-changes-no-state", "what-it-is-given-stays"),
    )
    def embed_draws_by_sample(self) -> None:
        """What `embed` draws is keyed by the sample: torch's generator has no part in it, but for
        layers such as dropout."""
        t = self.still()
        batch = next(batches(t))
        one, other = (self.embed(t, batch, stream) for stream in ("one", "other"))
        name, far = farthest(one, other)
        refuse(far > 0.0, f"'{name}' of the same batch, embedded twice, follows torch's generator")

    @law(
        "compute the entries of embed row by row, draw from batch.random for each row, and let "
        "each image have its own mask; what goes over the batch belongs into objective",
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
        for name, value in whole.items():
            shapes = [tuple(part[name].shape[1:]) for part in parts if name in part]
            odd = [shape for shape in shapes if shape != tuple(value.shape[1:])]
            rows = tuple(value.shape[1:])
            refuse(odd, f"'{name}' has rows of {rows} in the batch, of {odd[:1]} in a half")
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        name, far = farthest(joined, whole)
        refuse(far > ROUNDING, f"'{name}' of two halves is {far:.2g} away from that of the whole")

    @law(
        "pair rows by image: labels, targets and batch.random have one row for each image, in the "
        "order of every view; draw noise for images, and groups of them, from batch.random, not by "
        "their place",
        needs=("embed-treats-rows-alone", "objective-changes-no-state"),
    )
    def loss_does_not_depend_on_order(self) -> str:
        """The same images in another order have the same loss."""
        t = self.still()
        batch = next(batches(t))
        order = torch.arange(len(batch)).roll(3).flip(0)
        before, after = (self._loss(t, given) for given in (batch, reordered(batch, order)))
        far = _apart(before, after)
        refuse(far > _LOSS_ROUNDING, f"the loss {before:.9g} became {after:.9g}")
        return "; ".join(self._of_views(t, batch, before))

    def _loss(self, t: Training, batch: Batch) -> float:
        return float(self.objective(t, self.embed(t, batch), batch).loss)

    def _of_views(self, t: Training, batch: Batch, loss: float) -> list[str]:
        """What is rarely meant of how views enter the loss, in words."""
        if len(batch.views) < 2:
            return []
        numbers = range(len(batch.views))
        idle = [
            str(number)
            for number in numbers
            if self._loss(t, _with_views(batch, {number: batch.views[number].flip(-1)})) == loss
        ]
        unpaired = {number: batch.views[number].roll(1, 0) for number in numbers[1:]}
        said = [f"view {', '.join(idle)} has no part in the loss"] if idle else []
        if not idle and _apart(self._loss(t, _with_views(batch, unpaired)), loss) < _LOSS_ROUNDING:
            said.append("the loss compares no two views of an image")
        return said

    @law(
        "set requires_labels = True, or take no part of batch.labels",
        needs=(*SAME, "objective-changes-no-state", "what-it-is-given-stays"),
    )
    def labels_are_asked_for(self) -> None:
        """Without `requires_labels` it neither needs labels nor looks at them."""
        t = self.trained()
        if t.method.requires_labels:
            raise SkipTest("it trains with labels, and says so")
        batch = next(batches(t))
        if batch.labels is None:
            raise UntriedError("the data of the recipe have no labels; name data that have some")
        given = (batch.labels, (batch.labels + 1) % 3, None)
        own, others, none = (self._loss(t, replace(batch, labels=labels)) for labels in given)
        refuse(
            not own == others == none,
            f"the loss is {own:.9g} with the labels of the images, {others:.9g} with others and "
            f"{none:.9g} without",
        )

    # --- Collapse ---------------------------------------------------------------------------------

    @law(
        "name in must_not_collapse what keeps images apart in a healthy run, by the keys of embed; "
        '{"features": "spread"} where there is nothing else, {} where nothing can collapse',
        needs=STEP,
    )
    def collapse_is_watched(self) -> str:
        """The entries of `embed` by which a collapse is seen are there: floating-point, one row for
        each image."""
        t = self.trained()
        batch = next(batches(t))
        embeddings = self.embed(t, batch)
        given = ", ".join(embeddings)
        watched = t.method.must_not_collapse
        if watched is not None and not watched:
            raise SkipTest("it says that nothing of it can collapse")
        fit = [n for n, v in embeddings.items() if v.ndim > 1 and v.is_floating_point()]
        named = [n for n in fit if n != "features"] if watched is None else list(watched)
        refuse(not named, f"embed gives {given}, and of these nothing is watched")
        missing = [name for name in named if name not in embeddings]
        refuse(missing, f"embed gives {given}, and not {listed(missing)}")
        odd = [name for name in named if name not in fit]
        refuse(odd, f"{listed(odd)}: no floating-point (B, ..., D)")
        return f"watches {', '.join(named)}"

    @law("add an epsilon where it divides, or takes a root or a logarithm", needs=STEP)
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
        if not output.loss.requires_grad:
            return
        output.loss.backward()  # type: ignore[no-untyped-call]
        graded: Mapping[str, Tensor] = {**equal, **dict(t.method.named_parameters())}
        odd = [n for n, v in graded.items() if v.grad is not None and not v.grad.isfinite().all()]
        refuse(odd, f"the gradient of {listed(odd)} is not finite")


def _with_views(batch: Batch, others: Mapping[int, Tensor]) -> Batch:
    """The batch with other views in some places."""
    views = tuple(others.get(number, view) for number, view in enumerate(batch.views))
    return replace(batch, views=views)


def _apart(one: float, other: float) -> float:
    """How far two losses are apart, in parts of the first."""
    return abs(one - other) / max(abs(one), 1e-6)
