"""What an augmentation promises of what it draws: parameters and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.api import ImageAugmentation, Params, ViewSpec
from sslkit.experiment.trials import (
    ROWS,
    check_geometry,
    check_params,
    check_targets,
    close_values,
    generator_states,
    same_values,
)

from .augmentation_bench import AugmentationBench, drawn_rows
from .interleaved import at_once
from .laws import law, refuse
from .small_runs import listed

DRAWN = ("says-which-views-it-makes", "has-a-row-for-each-sample")


class DrawLaws(AugmentationBench):
    """The laws of `Augmentation` on parameters and targets."""

    @law("return from views a tuple of ViewSpec that follows from the configuration alone")
    def says_which_views_it_makes(self) -> str:
        """`views` names at least one view, and stays the same."""
        first = self.augmentation.views
        odd = [view for view in first if not isinstance(view, ViewSpec)]
        refuse(not first or odd, f"views are {first}")
        self.augmentation.draw(self.keys(), self.sizes)
        refuse(self.augmentation.views != first, f"{first} became {self.augmentation.views}")
        refuse(self.build().views != first, f"{first}, and {self.build().views} when built again")
        return ", ".join(str(view) for view in first[:4]) + ("" if len(first) < 5 else ", ...")

    @law(
        "return a list with a dict of tensors (B, ...) for each view from draw, such a dict from "
        "targets, and from geometry a box (B, 4), a flip (B,) and the size of the ViewSpec",
        needs=DRAWN[:1],
    )
    def has_a_row_for_each_sample(self) -> None:
        """`draw` gives for each view tensors with one row for each sample, as `targets` does;
        `geometry` a box, a flip and the size of the view."""
        drawn = self.draw()
        check_params("draw", drawn, len(self.augmentation.views))
        check_targets("targets", self.augmentation.targets(list(drawn)))
        if isinstance(self.augmentation, ImageAugmentation):
            for view, spec in enumerate(self.augmentation.views):
                crop = self.augmentation.geometry(view, drawn[view], self.sizes)
                check_geometry(f"geometry gave view {view}", crop, spec.size)

    @law(
        "draw from the SampleRandom that `draw` is given: uniform, integers, permutation, bits, "
        "each under a name of its own",
        needs=DRAWN,
    )
    def no_global_random_numbers(self) -> None:
        """Nothing that it does uses the global random numbers of torch, numpy or Python, which
        differ after a resume and between threads."""
        before = generator_states()
        self.augmentation.targets(self.draw())
        self.views_of(self.samples(), self.fitting())
        moved = [
            name
            for (name, state), (_, after) in zip(before, generator_states(), strict=True)
            if not same_values(state, after)
        ]
        refuse(moved, f"moves the global random numbers of {', '.join(moved)} on")

    @law(
        "draw by sample from the SampleRandom that `draw` is given, and neither from the position "
        "in the batch nor from its size; keep nothing between calls",
        needs=(*DRAWN, "no-global-random-numbers"),
    )
    def parameters_follow_from_the_key(self) -> str | None:
        """What `draw` gives a sample follows from its key and its size: the same again, in any
        batch, in any order, and from several threads at once."""
        whole = self.draw()
        refuse(not same_values(whole, self.draw()), "others when drawn again")
        for words, rows in (
            ("in a part of the batch", slice(3, 11)),
            ("for one sample alone", slice(5, 6)),
            ("in another order", torch.arange(ROWS).flip(0)),
        ):
            part = [drawn_rows(params, rows) for params in whole]
            found = self.draw(rows)
            names = sorted({n for a, b in zip(part, found, strict=True) for n in _odd(a, b)})
            refuse(names, f"others {words}: {listed(names)}")
        parts = [slice(start, start + 8) for start in range(0, ROWS, 8)] * 4
        for rows, found in zip(parts, at_once(self.draw, parts, self.augmentation), strict=True):
            part = [drawn_rows(params, rows) for params in whole]
            refuse(not close_values(part, found), "others when several threads draw")
        return self._what_is_alike(whole)

    def _what_is_alike(self, whole: Sequence[Params]) -> str | None:
        """What another seed, epoch and view leave as it is, in words: rarely meant."""
        if same_values(whole, self.draw(seed=1)) and same_values(whole, self.draw(epoch=1)):
            return "draws nothing"
        alike = [
            words
            for words, found in (
                ("with every seed", self.draw(seed=1)), ("in every epoch", self.draw(epoch=1))
            )
            if same_values(whole, found)
        ]  # fmt: skip
        views = self.augmentation.views
        if len(whole) > 1 and views[0] == views[1] and same_values(whole[0], whole[1]):
            alike.append("for the first two views")
        return f"draws the same {' and '.join(alike)}" if alike else None

    @law(
        "compute targets row by row from the parameters that it is given",
        needs=(*DRAWN, "parameters-follow-from-the-key"),
    )
    def targets_follow_their_rows(self) -> str:
        """`targets` gives a sample the same in any batch and at its own row, and changes none of
        the parameters."""
        drawn = self.draw()
        whole = self.augmentation.targets(list(drawn))
        if not whole:
            raise SkipTest("it has no targets")
        refuse(not same_values(drawn, self.draw()), "targets changed the parameters")
        for rows in (slice(3, 11), torch.arange(ROWS).flip(0)):
            part = self.augmentation.targets([drawn_rows(params, rows) for params in drawn])
            odd = _odd(drawn_rows(whole, rows), part)
            refuse(odd, f"{listed(odd)} of a part is not that part of the whole")
        return ", ".join(whole)


def _odd(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    return list(_odd_names(one, other))


def _odd_names(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[str]:
    for name in (*one, *(n for n in other if n not in one)):
        known = name in one and name in other
        if not known or not close_values([{name: one[name]}], [{name: other[name]}]):
            yield name
