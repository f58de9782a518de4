"""Whether data, augmentation and backbone agree on what a sample is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from sslkit.api import Backbone, ImageAugmentation, RunFacts, SampleSpec, Slot, largest_view
from sslkit.errors import RecipeError
from sslkit.recipe import Recipe


def refuse_other_samples(recipe: Recipe, facts: RunFacts) -> None:
    """Raises RecipeError where a component cannot take what it would be given."""
    problems = [*_of_views(recipe, facts), *_of_backbone(recipe, facts)]
    if problems:
        raise RecipeError(*problems)


def _of_views(recipe: Recipe, facts: RunFacts) -> Iterator[str]:
    sample, name = facts.sample, recipe.augmentation.name
    if issubclass(recipe.augmentation.cls, ImageAugmentation):
        if not sample.is_image:
            yield (
                f"augmentation: '{name}' makes views of images, and the samples of "
                f"'{recipe.data.name}' are {sample}; choose an augmentation for those"
            )
    elif sample.sides is None:
        yield (
            f"data: the samples of '{recipe.data.name}' are {sample}, and '{name}' works on "
            "batches of one shape; pad or cut them in the data source, or choose an augmentation "
            "of images"
        )


def _of_backbone(recipe: Recipe, facts: RunFacts) -> Iterator[str]:
    slot, sample = recipe.backbone, facts.sample
    if not slot.cls.takes_images:
        if sample.sides is None:
            yield (
                f"data: the samples of '{recipe.data.name}' are {sample}, and backbone "
                f"'{slot.name}' is measured on whole samples of one shape; pad or cut them in the "
                "data source"
            )
        return
    others = [view for view in facts.views if not view.is_square]
    if not sample.is_image or others:
        what = f"views of {others[0]}" if others else f"samples of {sample}"
        yield (
            f"backbone: '{slot.name}' takes square images, and would be given {what}; choose a "
            "backbone for those"
        )


def build_backbone(slot: Slot[Backbone], shape: tuple[int, ...]) -> Backbone:
    """The backbone for views of up to this shape, (C, *sides)."""
    if slot.cls.takes_images:
        return slot.build(channels=shape[0], image_size=shape[-1])
    return slot.build(shape=shape)


def input_shape(facts: RunFacts) -> tuple[int, ...]:
    """(C, *sides) of the largest view, which a backbone is built for."""
    return largest_view(facts.views, facts.channels)


def measured_shape(encoder: Backbone, sample: SampleSpec) -> tuple[int, ...]:
    """(C, *sides) of what an encoder is given when it is measured or in use."""
    if encoder.takes_images:
        return sample.channels, encoder.preprocess.size, encoder.preprocess.size
    return tuple(side for side in sample.shape if side is not None)


def measured_dtype(sample: SampleSpec) -> torch.dtype:
    """The type of what an encoder is given then: float32 of pixels."""
    return torch.float32 if sample.is_image else sample.torch_dtype


def described_preparation(encoder: Backbone) -> dict[str, Any] | None:
    """How images are prepared for an encoder, ready for JSON; None where samples are taken as they
    are."""
    return dataclasses.asdict(encoder.preprocess) if encoder.takes_images else None
