"""Whether an augmentation and a data source are functions of what they are given: tried on a few
images before the first step. One that draws from a global generator gives other views after a
resume and with other threads."""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslkit.api import (
    Augmentation,
    Geometry,
    ImageAugmentation,
    Params,
    SampleSpec,
    SplitReader,
    UnreadableImageError,
)
from sslkit.errors import PluginError
from sslkit.randomness import SampleRandom

from .contract import ViewShape, check_view, describe

_ROWS = 64
"""Samples that parameters are drawn for, so that what happens to few of them is seen."""
_IMAGES = 8
_PART = slice(3, 11)
_USUAL_SIZE = (80, 60)
_ADVICE = "draw from the SampleRandom that `draw` is given, or seed a generator of your own from it"


def check_augmentation(augmentation: Augmentation, where: str, sample: SampleSpec) -> None:
    """Raises PluginError where views are not a function of sample and key, or not as announced.

    where: of the augmentation in the recipe. sample: what the samples of the run are."""
    who = f"{where}: {type(augmentation).__name__}"
    indices = torch.arange(_ROWS) * 7 + 3
    sizes = torch.tensor([sample.sides or _USUAL_SIZE]).expand(_ROWS, -1)

    def keys(rows: slice = slice(None)) -> SampleRandom:
        return SampleRandom(0, "check", 0, indices[rows])

    with unchanged_generators(f"{who}.draw"):
        drawn = augmentation.draw(keys(), sizes)
        again = augmentation.draw(keys(), sizes)
        part = augmentation.draw(keys(_PART), sizes[_PART])
    _check_params(f"{who}.draw", drawn, len(augmentation.views))
    if not (_same(drawn, again) and _same([_rows(view, _PART) for view in drawn], part)):
        raise PluginError(
            f"{who}.draw gave other parameters for the same sample and key; valid is a function of "
            f"both, whatever the rest of the batch: {_ADVICE}"
        )
    _check_targets(f"{who}.targets", augmentation.targets(list(drawn)))
    for view in range(len(augmentation.views)):
        _check_view(augmentation, who, view, drawn[view], sample)


def check_reader(reader: SplitReader, where: str) -> None:
    """Raises PluginError where an image is not the same each time it is read. where: of the source
    in the recipe."""
    who = f"{where}: {type(reader).__name__}.read"
    try:
        with unchanged_generators(who):
            first, second = reader.read(0), reader.read(0)
    except (UnreadableImageError, OSError):  # counted, replaced and retried when its turn comes
        return
    if not np.array_equal(first, second):
        raise PluginError(
            f"{who} gave other pixels for the same image; valid is a function of the index: what "
            "is random belongs into the augmentation"
        )


@contextmanager
def unchanged_generators(who: str) -> Iterator[None]:
    """Raises PluginError where the block moves a global generator on."""
    before = _generators()
    yield
    for (name, state), (_, after) in zip(before, _generators(), strict=True):
        if not _same(state, after):
            raise PluginError(
                f"{who} uses the global random numbers of {name}, which differ after a resume and "
                f"between threads; {_ADVICE}"
            )


def _generators() -> list[tuple[str, Any]]:
    return [
        ("torch", torch.random.get_rng_state()),
        ("numpy", np.random.get_state(legacy=True)),  # noqa: NPY002  (others use it)
        ("Python", python_random.getstate()),
    ]


def _check_params(who: str, drawn: Any, num_views: int) -> None:
    if not isinstance(drawn, Sequence) or len(drawn) != num_views:
        found = f"{len(drawn)} views" if isinstance(drawn, Sequence) else describe(drawn)
        raise PluginError(f"{who} gave {found}; valid is a list of parameters for {num_views}")
    for view, params in enumerate(drawn):
        if not isinstance(params, Mapping):
            raise PluginError(
                f"{who} gave {describe(params)} for view {view}; valid is a mapping of tensors"
            )
        for name, value in params.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != _ROWS:
                raise PluginError(
                    f"{who} gave '{name}' of view {view} as {describe(value)} for {_ROWS} images; "
                    "valid is a tensor with one row per image"
                )


def _check_targets(who: str, targets: Any) -> None:
    if not isinstance(targets, Mapping):
        raise PluginError(f"{who} gave {describe(targets)}; valid is a mapping of tensors")
    for name, value in targets.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != _ROWS:
            raise PluginError(
                f"{who} gave '{name}' as {describe(value)} for {_ROWS} images; valid is a tensor "
                "with one row per image"
            )


def _check_view(
    augmentation: Augmentation, who: str, view: int, params: Params, sample: SampleSpec
) -> None:
    spec, few = augmentation.views[view], _rows(params, slice(_IMAGES))
    generator = torch.Generator().manual_seed(0)
    if isinstance(augmentation, ImageAugmentation):
        sizes = torch.tensor([sample.sides or _USUAL_SIZE]).expand(_ROWS, 2)
        with unchanged_generators(f"{who}.geometry"):
            crop = augmentation.geometry(view, params, sizes)
        _check_geometry(f"{who}.geometry gave view {view}", crop, spec.size)
        name, make = "photometric", partial(augmentation.photometric, view)
        samples = torch.rand((_IMAGES, *spec.shape(sample.channels)), generator=generator)
    else:
        name, make = "make", partial(augmentation.make, view)
        samples = _example(sample, generator)
    with unchanged_generators(f"{who}.{name}"), torch.no_grad():
        made, again = make(samples.clone(), few), make(samples.clone(), few)
    bounded = isinstance(augmentation, ImageAugmentation)
    announced = ViewShape.of(spec, _IMAGES, sample.channels, bounded)
    check_view(f"{who}.{name} gave view {view} as", made, announced)
    if not _same(made, again):
        raise PluginError(
            f"{who}.{name} gave other values for the same parameters; valid is a function of "
            f"samples and parameters: {_ADVICE}"
        )


def _example(sample: SampleSpec, generator: torch.Generator) -> Tensor:
    """A few samples of the right shape and type: whole numbers are 0 or 1, which most may be."""
    usual = iter(_USUAL_SIZE)
    shape = [next(usual) if side is None else side for side in sample.shape]
    values = torch.rand((_IMAGES, *shape), generator=generator)
    if not sample.torch_dtype.is_floating_point:
        values = 255.0 * values if sample.is_image else values.round()
    return values.to(sample.torch_dtype)


def _check_geometry(what: str, crop: Any, size: int | tuple[int, ...]) -> None:
    if not isinstance(crop, Geometry):
        raise PluginError(f"{what} as {describe(crop)}; valid is a Geometry")
    if tuple(crop.box.shape) != (_ROWS, 4) or not bool(torch.isfinite(crop.box.float()).all()):
        raise PluginError(
            f"{what} the box {describe(crop.box)}; valid are finite boxes ({_ROWS}, 4)"
        )
    if tuple(crop.flip.shape) != (_ROWS,) or crop.flip.dtype != torch.bool:
        raise PluginError(f"{what} the flip {describe(crop.flip)}; valid is ({_ROWS},) bool")
    if crop.size != size:
        raise PluginError(f"{what} the size {crop.size}; valid is that of its ViewSpec, {size}")


def _rows(params: Params, rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in params.items()}


def _same(first: Any, second: Any) -> bool:
    """Whether two nested structures of tensors, arrays and values hold the same bits."""
    if isinstance(first, Tensor):
        return (
            isinstance(second, Tensor)
            and first.shape == second.shape
            and bool(((first == second) | ((first != first) & (second != second))).all())
        )
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)
