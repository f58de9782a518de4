"""What is tried on built components before the first step."""

from __future__ import annotations

import random as python_random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslkit.api import (
    Augmentation,
    Backbone,
    Geometry,
    ImageAugmentation,
    Method,
    OwnDataEvaluator,
    Params,
    RunFacts,
    SampleSpec,
    SplitReader,
    UnreadableImageError,
)
from sslkit.api.schedules import checked_factor, sampled_steps
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.contract import ViewShape, check_view, describe
from sslkit.engine.torch_faults import Convolution, find_faulty, recorded_convolutions
from sslkit.errors import PluginError, RecipeError, failure_of
from sslkit.nn.compute import Compute
from sslkit.nn.modes import eval_mode
from sslkit.randomness import SampleRandom
from sslkit.recipe import Recipe, components, scheduled_numbers
from sslkit.runs.folder import RunFolder

from .networks import measured_dtype, measured_shape

ROWS = 64
"""Samples that parameters are drawn for, so that what happens to few of them is seen."""
_IMAGES = 8
_PART = slice(3, 11)
_USUAL_SIZE = (80, 60)
_ROUNDING = 1e-6
_ADVICE = "draw from the SampleRandom that `draw` is given, or seed a generator of your own from it"


def check_encoder(recipe: Recipe, facts: RunFacts, compute: Compute, encoder: Backbone) -> None:
    """Sends two black images, or samples of zeros, through the encoder, in eval mode. Raises
    PluginError where it fails or its features do not have the width that it states."""
    slot = recipe.backbone
    who = f"backbone: '{slot.name}' of {slot.distribution} {slot.version}"
    what = "images" if encoder.takes_images else "samples"
    images = torch.zeros(2, *measured_shape(encoder, facts.sample), device=compute.device)
    images = images.to(measured_dtype(facts.sample))
    try:
        with torch.no_grad(), eval_mode(encoder):
            features = encoder(compute.layout(images))
    except Exception as error:  # whatever a network raises
        raise PluginError(
            f"{who} cannot take {what} {tuple(images.shape)}: {failure_of(error)}"
        ) from error
    if tuple(features.shape) != (2, encoder.num_features):
        raise PluginError(
            f"{who} turns {what} {tuple(images.shape)} into features {tuple(features.shape)}, "
            f"expected (2, num_features) with its num_features {encoder.num_features}"
        )


def check_convolutions(
    recipe: Recipe, facts: RunFacts, compute: Compute, encoder: Backbone
) -> None:
    """Raises RecipeError where torch would give the encoder gradients that are not set."""
    if compute.device.type != "cpu" or compute.precision == "fp32":
        return
    seen: set[Convolution] = set()
    for shape in {view.shape(facts.channels) for view in facts.views}:
        images = torch.zeros(2, *shape)
        # A view may be for another network: what fails here says nothing.
        with (
            suppress(Exception),
            torch.no_grad(),
            eval_mode(encoder),
            recorded_convolutions(encoder, seen),
        ):
            encoder(compute.layout(images))
    if faulty := find_faulty(seen, compute.precision):
        raise RecipeError(
            f"train.precision: {compute.precision} on a CPU: torch {torch.__version__} leaves part "
            f"of the weight gradient of {faulty[0]} of the backbone unset"
            f"{f', and of {len(faulty) - 1} more' if len(faulty) > 1 else ''}; set "
            "train.precision=fp32, make the views larger, or take a backbone that shrinks them less"
        )


def check_schedules(recipe: Recipe, facts: RunFacts) -> None:
    """Raises PluginError where a schedule gives what its number may not be at some point of the
    run."""
    schedule = recipe.schedule.build()
    for progress in sampled_steps(facts):
        checked_factor(schedule, progress)
    for name, number in scheduled_numbers(recipe).items():
        try:
            number.values(facts)
        except PluginError as error:
            raise PluginError(f"{name}: {error}") from error


def check_disk_space(recipe: Recipe, folder: RunFolder, method: Method) -> None:
    """Raises RecipeError where the checkpoints of the run would not fit on the disk: weights and
    two moments of the optimiser each, and one more file while the next is written."""
    state = sum(value.nbytes for value in method.state_dict().values())
    needed = 3 * state * (recipe.train.keep_checkpoints + 1)
    # A resume replaces the checkpoints that are there.
    own = sum(path.stat().st_size for path in folder.checkpoints.glob("*.pt"))
    free = shutil.disk_usage(folder.path).free + own
    if needed > free:
        raise RecipeError(
            f"runs_dir: the checkpoints need up to {needed / 1e9:.1f} GB and {folder.path.parent} "
            f"has {free / 1e9:.1f} GB free; choose another runs_dir or lower train.keep_checkpoints"
        )


# --- Views and images are functions of what they are given ---------------------------------------
# One that draws from a global generator gives other views after a resume and with other threads.


def check_repeatable(recipe: Recipe, facts: RunFacts, store: CachedSplit) -> None:
    """Raises PluginError where views or images are not functions of the recipe."""
    if store.reader.samples is None:
        check_reader(store.reader, "data")
    for path, slot in components(recipe):
        if not issubclass(slot.cls, Augmentation):
            continue
        if path == "augmentation" or not _on_own_data(recipe, path):
            check_augmentation(slot.build(), path, facts.sample)


def _on_own_data(recipe: Recipe, path: str) -> bool:
    """Whether a component lies in an evaluator that measures on other data than the run's."""
    owners = [slot.cls for where, slot in components(recipe) if path.startswith(f"{where}.")]
    return any(issubclass(owner, OwnDataEvaluator) for owner in owners)


def check_augmentation(augmentation: Augmentation, where: str, sample: SampleSpec) -> None:
    """Raises PluginError where views are not a function of sample and key, or not as announced.

    where: of the augmentation in the recipe. sample: what the samples of the run are."""
    who = f"{where}: {type(augmentation).__name__}"
    indices = torch.arange(ROWS) * 7 + 3
    sizes = torch.tensor([sample.sides or _USUAL_SIZE]).expand(ROWS, -1)

    def keys(rows: slice = slice(None)) -> SampleRandom:
        return SampleRandom(0, "check", 0, indices[rows])

    with unchanged_generators(f"{who}.draw"):
        drawn = augmentation.draw(keys(), sizes)
        again = augmentation.draw(keys(), sizes)
        part = augmentation.draw(keys(_PART), sizes[_PART])
    check_params(f"{who}.draw", drawn, len(augmentation.views))
    rows = [_rows(view, _PART) for view in drawn]
    if not (same_values(drawn, again) and close_values(rows, part)):
        raise PluginError(
            f"{who}.draw gave other parameters for the same sample and key; valid is a function of "
            f"both, whatever the rest of the batch: {_ADVICE}"
        )
    check_targets(f"{who}.targets", augmentation.targets(list(drawn)))
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
    before = generator_states()
    yield
    for (name, state), (_, after) in zip(before, generator_states(), strict=True):
        if not same_values(state, after):
            raise PluginError(
                f"{who} uses the global random numbers of {name}, which differ after a resume and "
                f"between threads; {_ADVICE}"
            )


def generator_states() -> list[tuple[str, Any]]:
    """(library, state) of every global generator."""
    return [
        ("torch", torch.random.get_rng_state()),
        ("numpy", np.random.get_state(legacy=True)),  # noqa: NPY002  (others use it)
        ("Python", python_random.getstate()),
    ]


def check_params(who: str, drawn: Any, num_views: int) -> None:
    if not isinstance(drawn, Sequence) or len(drawn) != num_views:
        found = f"{len(drawn)} views" if isinstance(drawn, Sequence) else describe(drawn)
        raise PluginError(f"{who} gave {found}; valid is a list of parameters for {num_views}")
    for view, params in enumerate(drawn):
        if not isinstance(params, Mapping):
            raise PluginError(
                f"{who} gave {describe(params)} for view {view}; valid is a mapping of tensors"
            )
        for name, value in params.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != ROWS:
                raise PluginError(
                    f"{who} gave '{name}' of view {view} as {describe(value)} for {ROWS} images; "
                    "valid is a tensor with one row per image"
                )


def check_targets(who: str, targets: Any) -> None:
    if not isinstance(targets, Mapping):
        raise PluginError(f"{who} gave {describe(targets)}; valid is a mapping of tensors")
    for name, value in targets.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != ROWS:
            raise PluginError(
                f"{who} gave '{name}' as {describe(value)} for {ROWS} images; valid is a tensor "
                "with one row per image"
            )


def _check_view(
    augmentation: Augmentation, who: str, view: int, params: Params, sample: SampleSpec
) -> None:
    spec, few = augmentation.views[view], _rows(params, slice(_IMAGES))
    generator = torch.Generator().manual_seed(0)
    if isinstance(augmentation, ImageAugmentation):
        sizes = torch.tensor([sample.sides or _USUAL_SIZE]).expand(ROWS, 2)
        with unchanged_generators(f"{who}.geometry"):
            crop = augmentation.geometry(view, params, sizes)
        check_geometry(f"{who}.geometry gave view {view}", crop, spec.size)
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
    if not same_values(made, again):
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


def check_geometry(what: str, crop: Any, size: int | tuple[int, ...]) -> None:
    if not isinstance(crop, Geometry):
        raise PluginError(f"{what} as {describe(crop)}; valid is a Geometry")
    if tuple(crop.box.shape) != (ROWS, 4) or not bool(torch.isfinite(crop.box.float()).all()):
        raise PluginError(
            f"{what} the box {describe(crop.box)}; valid are finite boxes ({ROWS}, 4)"
        )
    if tuple(crop.flip.shape) != (ROWS,) or crop.flip.dtype != torch.bool:
        raise PluginError(f"{what} the flip {describe(crop.flip)}; valid is ({ROWS},) bool")
    if crop.size != size:
        raise PluginError(f"{what} the size {crop.size}; valid is that of its ViewSpec, {size}")


def _rows(params: Params, rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in params.items()}


def close_values(first: Sequence[Params], second: Sequence[Params]) -> bool:
    """Whether parameters are the same but for rounding: some functions, such as powers, round
    otherwise at other places of a tensor."""
    return len(first) == len(second) and all(
        one.keys() == other.keys() and all(map(_close, one.values(), other.values()))
        for one, other in zip(first, second, strict=True)
    )


def _close(first: Tensor, second: Tensor) -> bool:
    if not first.is_floating_point() or first.shape != second.shape:
        return same_values(first, second)
    return torch.allclose(first, second, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)


def same_values(first: Any, second: Any) -> bool:
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
        same_keys = first.keys() == second.keys()
        return same_keys and all(same_values(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_values, first, second))
    return bool(first == second)
