"""What an augmentation promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.api import ImageAugmentation, Params, ViewSpec
from sslkit.data.resize import crop_view
from sslkit.engine.contract import ViewShape, check_view
from sslkit.experiment.trials import (
    ROWS,
    check_geometry,
    check_params,
    check_targets,
    generator_states,
    same_values,
)
from sslkit.nn.image import crop_resize

from .augmentation_bench import IMAGE_SIZES, AugmentationBench, drawn_rows
from .interleaved import at_once
from .laws import law, refuse
from .small_runs import listed

_LEVEL = 1.0 / 255.0
_ROUNDING = 1e-5
"""The largest difference of pixels in [0, 1] that other batches and layouts make, which may sum in
another order; of other samples in parts of the largest value."""
_FLIPPED = 1e-3
"""Part of the values that rounding may move to the other side of a threshold, as in solarise."""
_ROUNDS = 4
"""Times that every part of the samples is made while threads are at it."""
_DRAWN = ("says-which-views-it-makes", "has-a-row-for-each-sample")
_MADE = (*_DRAWN, "no-global-random-numbers", "views-are-as-announced", "views-repeat")


class AugmentationLaws(AugmentationBench):
    """The laws of `Augmentation` and `ImageAugmentation`."""

    # --- What is drawn ----------------------------------------------------------------------------

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
        needs=_DRAWN[:1],
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
        needs=_DRAWN,
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
        needs=(*_DRAWN, "no-global-random-numbers"),
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
            refuse(not same_values(part, found), "others when several threads draw")
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
        needs=(*_DRAWN, "parameters-follow-from-the-key"),
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

    # --- What is made of it -----------------------------------------------------------------------

    @law(
        "return (B, C, *sides) as the ViewSpec says, views of images floating-point and clamped to "
        "[0, 1]",
        needs=(*_DRAWN, "crops-lie-inside-the-image"),
    )
    def views_are_as_announced(self) -> str:
        """Views have the shape and the type of their ViewSpec; values are finite, and those of
        images in [0, 1], whatever the size of the images, black and white ones included."""
        for samples in self.odd_samples():
            channels = samples.shape[1] if samples.ndim > 2 else 0
            made = self.views_of(samples)
            for view, (spec, found) in enumerate(zip(self.augmentation.views, made, strict=True)):
                announced = ViewShape.of(spec, len(samples), channels, self.makes_images)
                what = f"of samples {tuple(samples.shape)} it made view {view} as"
                check_view(what, found, announced)
        return f"images of {len(IMAGE_SIZES)} shapes" if self.makes_images else ""

    @law(
        "let views follow from the samples and the parameters alone; what is drawn belongs into "
        "`draw`, and nothing is kept between calls",
        needs=(*_DRAWN, "no-global-random-numbers", "views-are-as-announced"),
    )
    def views_repeat(self) -> None:
        """It makes the same views of the same samples and parameters, to the bit, whatever was
        drawn and made in between, and so does another instance."""
        samples, drawn = self.samples(), self.fitting()
        first = self.views_of(samples, drawn)
        self.views_of(self.samples("others"), self.fitting(seed=1))
        refuse(not same_values(first, self.views_of(samples, drawn)), "others when made again")
        again = [
            self.make(view, samples, params, self.build()) for view, params in enumerate(drawn)
        ]
        refuse(not same_values(first, again), "another instance makes others")

    @law(
        "work row by row: row i of what is returned is sample i with row i of the parameters, and "
        "no statistics go over the batch",
        needs=_MADE,
    )
    def views_stay_at_their_rows(self) -> None:
        """A sample has the same view in any batch, at its own row, so that labels and targets stay
        in line with the views."""
        samples, drawn = self.samples(), self.fitting()
        count = len(samples)
        whole = self.views_of(samples, drawn)
        for words, rows in (
            ("in a part of the batch", torch.arange(2, count - 3)),
            ("alone", torch.tensor([5])),
            ("in another order", torch.arange(count).roll(3).flip(0)),
        ):
            part = [drawn_rows(params, rows) for params in drawn]
            found = self.views_of(samples[rows], part)
            for view, (mine, all_) in enumerate(zip(found, whole, strict=True)):
                far = self.distance(mine, all_[rows])
                refuse(not far <= _ROUNDING, f"view {view} of a sample {words} is {far:.2g} away")

    @law(
        "work out of place on what it is given, or clone it: no `sub_`, `clamp_` or `x[...] = ` on "
        "samples, parameters or sizes",
        needs=(*_DRAWN, "views-are-as-announced"),
    )
    def what_it_is_given_is_left_alone(self) -> None:
        """It writes neither to samples nor to parameters nor to sizes: others read them too."""
        sizes = self.sizes.clone()
        self.augmentation.draw(self.keys(), sizes)
        refuse(not torch.equal(sizes, self.sizes), "draw changed the sizes")
        few = self.fitting()
        before = [{name: value.clone() for name, value in params.items()} for params in few]
        for view, params in enumerate(few):
            for words, given, function in self.calls(view, params):
                kept = given.clone()
                function(given)
                refuse(not torch.equal(given, kept), f"{words} changed the samples")
                refuse(not same_values(few, before), f"{words} changed the parameters")

    @law("use reshape and flatten, and no view on what may lie otherwise in memory", needs=_MADE)
    def memory_layout_changes_nothing(self) -> None:
        """Images that lie in memory with channels last have the same views."""
        samples = self.samples()
        if samples.ndim != 4:
            raise SkipTest("its samples have no such layout")
        drawn = self.fitting()
        expected = self.views_of(samples, drawn)
        turned = samples.contiguous(memory_format=torch.channels_last)
        for view, (mine, other) in enumerate(
            zip(self.views_of(turned, drawn), expected, strict=True)
        ):
            far = self.distance(mine, other)
            refuse(not far <= _ROUNDING, f"view {view} is {far:.2g} away")

    @law(
        "keep nothing on self while views are made: loader threads share the augmentation",
        needs=_MADE,
    )
    def threads_make_the_same(self) -> None:
        """Several threads that make views at once make what one makes, to the bit."""
        if not self.makes_images:
            raise SkipTest("its views are made by one thread")
        samples, drawn = self.samples(), self.fitting()
        rows = [slice(start, start + 2) for start in range(0, len(samples), 2)] * _ROUNDS

        def work(part: slice) -> list[Tensor]:
            return self.views_of(samples[part], [drawn_rows(p, part) for p in drawn])

        expected = {part.start: work(part) for part in rows[: len(samples)]}
        for part, made in zip(rows, at_once(work, rows, self.augmentation), strict=True):
            others = not same_values(expected[part.start], made)
            refuse(others, "others when several threads make them")

    # --- Images -----------------------------------------------------------------------------------

    @law(
        "give boxes of whole pixels, with at least one of each side, inside the sizes of "
        "`geometry`; random_resized_crop_boxes of sslkit.nn.image makes them",
        needs=_DRAWN,
    )
    def crops_lie_inside_the_image(self) -> None:
        """The box of a view is made of whole pixels and lies inside the image, however small, so
        that a crop is the same while an image is decoded and on the batch, to 1/255."""
        if not isinstance(self.augmentation, ImageAugmentation):
            raise SkipTest("it makes no views of images")
        drawn = self.draw()
        for view, params in enumerate(drawn):
            crop = self.augmentation.geometry(view, params, self.sizes)
            box = crop.box.double()
            for row, (edges, size) in enumerate(zip(box, self.sizes.double(), strict=True)):
                start, sides = edges[:2], edges[2:]
                inside = bool(
                    (start >= 0).all() & (sides >= 1).all() & (start + sides <= size).all()
                )
                whole = bool((edges == edges.round()).all())
                refuse(
                    not (inside and whole),
                    f"view {view}: the box {edges.tolist()} in an image of "
                    f"{size.long().tolist()} pixels (sample {row})",
                )
        self._refuse_other_crops()

    def _refuse_other_crops(self) -> None:
        assert isinstance(self.augmentation, ImageAugmentation)
        smooth = self.smooth_images()
        sizes = torch.tensor([smooth.shape[-2:]]).expand(len(smooth), 2)
        drawn = self.augmentation.draw(self.keys(slice(len(smooth))), sizes)
        for view, params in enumerate(drawn):
            crop = self.augmentation.geometry(view, params, sizes)
            batch = crop_resize(smooth, crop.box, crop.flip, crop.size, crop.interpolation)
            for row, (box, flip) in enumerate(
                zip(crop.box.long().tolist(), crop.flip.tolist(), strict=True)
            ):
                one = crop_view(smooth[row], box, flip, crop.size, crop.interpolation) / 255.0
                far = float((one - batch[row]).abs().max())
                refuse(far > 1.01 * _LEVEL, f"view {view}: crops are {255.0 * far:.2g}/255 apart")

    @law(
        "leave `make` as it is, or let it be `geometry`, crop and `photometric`",
        needs=_MADE,
    )
    def make_is_crop_and_photometric(self) -> None:
        """`make` gives what `photometric` makes of the crop of `geometry`: images in memory and
        decoded ones have the same views."""
        augmentation = self.augmentation
        if not isinstance(augmentation, ImageAugmentation):
            raise SkipTest("it makes no views of images")
        if type(augmentation).make is ImageAugmentation.make:
            raise SkipTest("it leaves make as it is")
        samples = self.samples()
        for view, params in enumerate(self.fitting()):
            crop = augmentation.geometry(view, params, self.sizes_of(samples))
            cut = crop_resize(samples, crop.box, crop.flip, crop.size, crop.interpolation)
            with torch.no_grad():
                far = self.distance(
                    augmentation.make(view, samples.clone(), params),
                    augmentation.photometric(view, cut, params),
                )
            refuse(not far <= _LEVEL, f"view {view} is {255.0 * far:.2g}/255 away")

    @law(
        "write what is done to batches as tensor operations, without Python on single values",
        needs=_MADE,
        slow=True,
    )
    def compiled_equals_eager(self) -> str:
        """Compiled by torch, as with `train.compile_augmentation`, it makes the same views: all but
        a thousandth of the values within 1/255 (of the largest value where these are no images)."""
        eager, compiled = self.through_the_engine(compiled=False), self.compiled_views()
        worst = 0.0
        for view, (one, other) in enumerate(zip(eager, compiled, strict=True)):
            scale = 1.0 if self.makes_images else max(float(one.abs().max()), 1e-6)
            difference = (one.double() - other.double()).abs() / scale
            part = float((difference > _LEVEL).double().mean())
            refuse(part > _FLIPPED, f"view {view}: {part:.1%} of the values are over 1/255 away")
            worst = max(worst, float(difference.double().flatten().quantile(0.999)))
        return f"at most {worst:.1g} away but for a thousandth"


def _odd(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    return list(_odd_names(one, other))


def _odd_names(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[str]:
    for name in (*one, *(n for n in other if n not in one)):
        if name not in one or name not in other or not same_values(one[name], other[name]):
            yield name
