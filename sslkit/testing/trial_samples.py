"""What networks and views are tried on where no recipe says what the samples are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sslkit.api import RunFacts, SampleSpec, Slot, ViewSpec
from sslkit.data.splits import open_splits
from sslkit.experiment.check import find_facts
from sslkit.randomness import seeded
from sslkit.recipe.model import components

from .laws import LawBrokenError
from .subject import Subject

USUAL: Sequence[tuple[SampleSpec, int | tuple[int, ...]]] = (
    (SampleSpec((3, None, None)), 32),
    (SampleSpec((1, None, None)), 32),
    (SampleSpec((3, None, None)), 64),
    (SampleSpec((3, None, None)), 224),
    (SampleSpec((2, 64), "float32"), (64,)),
    (SampleSpec((1, 128), "float32"), (128,)),
    (SampleSpec((1, 16, 16, 16), "float32"), (16, 16, 16)),
    (SampleSpec((64,), "int64"), (64,)),
)
"""(samples, size of the views), the likeliest first: images, series, volumes, tokens."""
_IMAGES = 96
_BATCH = 16
_EPOCHS = 10


def facts_of(sample: SampleSpec, views: Sequence[ViewSpec]) -> RunFacts:
    """The facts of a small run on such samples."""
    sides = sample.sides
    return RunFacts(
        num_images=_IMAGES,
        channels=sample.channels,
        image_size=(sides[0], sides[1]) if sample.is_image and sides is not None else None,
        num_classes=4,
        batch_size=_BATCH,
        steps_per_epoch=_IMAGES // _BATCH,
        total_steps=_EPOCHS * _IMAGES // _BATCH,
        views=tuple(views),
        other_samples=None if sample.is_image else sample,
    )


def facts_in_recipe(subject: Subject) -> RunFacts:
    """Those of the recipe that a subject was given."""
    recipe = subject.recipe
    return find_facts(recipe, open_splits(recipe.data), recipe.augmentation.build())


def usual_facts(images: bool | None) -> Iterator[RunFacts]:
    """Facts of small runs on samples of many kinds. images: only of these, or only of others; None:
    of all."""
    for sample, size in USUAL:
        if images in (None, sample.is_image):
            view = ViewSpec(size, channels=sample.channels, dtype=_view_dtype(sample))
            yield facts_of(sample, (view,) * 2)


def _view_dtype(sample: SampleSpec) -> str:
    return "float32" if sample.is_image else sample.dtype


def first_without_problems(subject: Subject, tried: Iterator[RunFacts]) -> RunFacts:
    """The first facts that the component has nothing to say against. Raises LawBrokenError where
    there are none."""
    against = ""
    for facts in tried:
        problems = list(problems_of(subject.slot, facts))
        if not problems:
            return facts
        against = against or f"{problems[0][0]}: {problems[0][1]}".removeprefix(": ")
    raise LawBrokenError(
        f"none of the samples that the kit has suits it ({against}); name a recipe that it stands "
        "in (--recipe)"
    )


def problems_of(slot: Slot[Any], facts: RunFacts) -> Iterator[tuple[str, str]]:
    """What a component, and each inside it, has to say against the facts."""
    yield from slot.cls.problems(slot.config, facts)
    for path, inner in components(slot.config):
        for field, message in inner.cls.problems(inner.config, facts):
            yield f"{path}.{field}", message


def example(shape: Sequence[int], dtype: torch.dtype, stream: str = "samples") -> Tensor:
    """Random values, the same for the same stream: in [0, 1] where they are floating-point and the
    shape is (B, C, H, W), normal else; 0 to 255 as uint8; 0 or 1 of other types."""
    with seeded(0, "conformance", stream):
        if dtype == torch.uint8:
            return torch.randint(0, 256, tuple(shape), dtype=dtype)
        if not dtype.is_floating_point:
            return torch.randint(0, 2, tuple(shape), dtype=dtype)
        values = torch.rand(*shape) if len(shape) == 4 else torch.randn(*shape)
    return values.to(dtype)


def root_mean_square(values: Tensor) -> float:
    """The root of the mean square of all values."""
    return math.sqrt(float(values.double().square().mean())) if values.numel() else 0.0
