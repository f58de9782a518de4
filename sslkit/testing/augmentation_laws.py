"""What an augmentation promises of the views that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.api import ImageAugmentation, Params
from sslkit.data.resize import crop_view
from sslkit.engine.contract import ViewShape, check_view
from sslkit.experiment.trials import (
    same_values,
)
from sslkit.nn.image import crop_resize

from .augmentation_bench import IMAGE_SIZES, drawn_rows
from .draw_laws import DRAWN, DrawLaws
from .interleaved import at_once
from .laws import law, refuse
from .small_runs import listed

_LEVEL = 1.0 / 255.0
_BOTH_PASSES = 1.5
"""Levels that whole numbers between the two passes of a resize, and after them, may cost: half of
one each, the first times what a bicubic filter adds up to without signs."""
_ROUNDING = 1e-5
"""The largest difference of pixels in [0, 1] that other batches and layouts make, which may sum in
another order; of other samples in parts of the largest value."""
_FLIPPED = 1e-3
"""Part of the values that rounding may move to the other side of a threshold, as in solarise."""
_ROUNDS = 4
"""Times that every part of the samples is made while threads are at it."""
_MADE = (*DRAWN, "no-global-random-numbers", "views-are-as-announced", "views-repeat")


class AugmentationLaws(DrawLaws):
    """The laws of `Augmentation` and `ImageAugmentation` on views."""

    @law(
        "return (B, C, *sides) as the ViewSpec says, views of images floating-point and clamped to "
        "[0, 1]; say in `problems`, by facts.channels, what it makes no views of",
        needs=(*DRAWN, "crops-lie-inside-the-image"),
    )
    def views_are_as_announced(self) -> str:
        """Views have the shape and the type of their ViewSpec; values are finite, and those of
        images in [0, 1], whatever the size of the images, black and white ones included, and
        whatever number of channels `problems` has nothing against."""
        for samples in self.odd_samples():
            channels = samples.shape[1] if samples.ndim > 2 else 0
            made = self._views_of_odd(samples)
            for view, (spec, found) in enumerate(zip(self.augmentation.views, made, strict=True)):
                announced = ViewShape.of(spec, len(samples), channels, self.makes_images)
                what = f"of samples {tuple(samples.shape)} it made view {view} as"
                check_view(what, found, announced)
        shapes = f"images of {len(IMAGE_SIZES)} shapes" if self.makes_images else ""
        also = f"of {listed([str(n) for n in self.other_channels])} channels, too"
        return ", ".join(filter(None, (shapes, also if self.other_channels else "")))

    def _views_of_odd(self, samples: Tensor) -> list[Tensor]:
        try:
            return self.views_of(samples)
        except Exception as error:
            error.args = (f"{error} (of samples {tuple(samples.shape)})",)
            raise

    @law(
        "let views follow from the samples and the parameters alone; what is drawn belongs into "
        "`draw`, and nothing is kept between calls",
        needs=(*DRAWN, "no-global-random-numbers", "views-are-as-announced"),
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
        needs=(*DRAWN, "views-are-as-announced"),
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
        "keep nothing on self while views are made: loader threads share the augmentation; what "
        "cannot be shared lies in a threading.local",
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
        needs=(*DRAWN, "parameters-follow-from-the-key"),
    )
    def crops_lie_inside_the_image(self) -> None:
        """The box of a view is made of whole pixels and lies inside the image, however small, so
        that a crop is the same while an image is decoded and on the batch, to rounding."""
        if not isinstance(self.augmentation, ImageAugmentation):
            raise SkipTest("it does not derive from ImageAugmentation")
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
                refuse(
                    far > _BOTH_PASSES * _LEVEL,
                    f"view {view}: crops are {255.0 * far:.2g}/255 apart",
                )

    @law(
        "leave `make` as it is, or let it be `geometry`, crop and `photometric`",
        needs=_MADE,
    )
    def make_is_crop_and_photometric(self) -> None:
        """`make` gives what `photometric` makes of the crop of `geometry`: images in memory and
        decoded ones have the same views."""
        augmentation = self.augmentation
        if not isinstance(augmentation, ImageAugmentation):
            raise SkipTest("it does not derive from ImageAugmentation")
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
        "write what is done to batches as tensor operations; what calls another library image by "
        "image stands under @torch.compiler.disable",
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

    # --- What is worth knowing --------------------------------------------------------------------

    def notes(self) -> Iterator[str]:
        """Where views differ less than those of most augmentations."""
        first, later = self.draw(), self.draw(epoch=1)
        drawn = any(params for params in first)
        if drawn and not other_parameters(first, later):
            yield (
                "an image has the same views in every epoch; where that is not meant, draw from "
                "the SampleRandom that `draw` is given, whose key holds the epoch"
            )
        views = self.augmentation.views
        for one, other in pairwise(range(len(views))):
            if (
                first[one]
                and views[one] == views[other]
                and not other_parameters(first[one : one + 1], first[other : other + 1])
            ):
                yield (
                    f"views {one} and {other} of an image are the same; where that is not meant, "
                    'draw each from a stream of its own, random.substream("view", view)'
                )


def other_parameters(some: Sequence[Params], others: Sequence[Params]) -> bool:
    """Whether the parameters of two draws differ anywhere."""
    pairs = zip(some, others, strict=True)
    return any(
        one.keys() != other.keys() or any(not torch.equal(one[n], other[n]) for n in one)
        for one, other in pairs
    )
