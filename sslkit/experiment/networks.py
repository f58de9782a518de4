"""Building the method and its networks, trained or not."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Backbone, Method, RunFacts, SampleSpec, Slot, largest_view
from sslkit.engine.display import Display
from sslkit.errors import RecipeError
from sslkit.evaluation.collector import named_evaluators
from sslkit.nn.compute import Compute
from sslkit.nn.recompute import is_recomputed
from sslkit.parallel.sharding import blocks
from sslkit.randomness import seeded
from sslkit.recipe import Recipe

_COMMON_SHARE = 0.1
"""Part of the weights that fixed filters and position embeddings may make up."""


def make_method(recipe: Recipe, facts: RunFacts) -> Method:
    """The method and its networks, initialised from the recipe's seed alone. Raises RecipeError for
    what only their constructors find, with its place in the recipe file."""
    with seeded(recipe.seed, "initialisation"), _located_problems(recipe):
        return recipe.method.build(make_backbone(recipe, facts), facts)


def make_for_encoder(recipe: Recipe, facts: RunFacts) -> Method:
    """`make_method` where the encoder and the projection layers alone are used: what only training
    needs is not read."""
    slot = recipe.method
    with seeded(recipe.seed, "initialisation"), _located_problems(recipe):
        return slot.cls.for_encoder(slot.config, make_backbone(recipe, facts), facts)


@contextmanager
def _located_problems(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise RecipeError(*(_located(recipe, each) for each in error.problems)) from error


def make_without_memory(recipe: Recipe, facts: RunFacts) -> Method | None:
    """`make_method` on the meta device, without the weights that networks start from. None where it
    cannot be made in this way: then nothing is known of it. Raises RecipeError as that does."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return make_method(without_starting_weights(recipe), facts)
    except RecipeError:
        raise
    except Exception:  # whatever needs values, in a plugin or in torch
        return None


def _located(recipe: Recipe, problem: str) -> str:
    """`field: what is wrong` with the place of the field in the recipe file."""
    field, colon, message = problem.partition(": ")
    path = tuple(int(part) if part.isdecimal() else part for part in field.split("."))
    if recipe.marks is None or not colon or path[0] not in Recipe.model_fields:
        return problem
    return recipe.marks.line(path, message)


def make_backbone(recipe: Recipe, facts: RunFacts) -> Backbone:
    """The backbone, initialised from the generators as they are."""
    return build_backbone(recipe.backbone, input_shape(facts))


def missing_untrained(recipe: Recipe, facts: RunFacts) -> str | None:
    """Why there can be no untrained encoder to compare with: the backbone gets weights that do not
    come from the seed, although it was asked for none. None where there can be one."""
    bare, networks = without_starting_weights(recipe), []
    for stream in ("initialisation", "another initialisation"):
        with seeded(recipe.seed, stream):
            networks.append(make_backbone(bare, facts))
    if not holds_weights(*networks):
        return None
    slot = recipe.backbone
    return (
        f"backbone '{slot.name}' of {slot.distribution} {slot.version} has the same weights under "
        f"two seeds, so they are not random; {slot.cls.__name__}.without_weights must give a "
        "config that loads none"
    )


def holds_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of one architecture, initialised from different seeds, have weights in
    common that no seed gave them: more than a tenth of all elements of parameters, those with one
    value throughout (biases, scales) and zeros not counted."""
    others = dict(other.named_parameters())
    total = common = 0
    for name, parameter in one.named_parameters():
        if _is_constant(parameter):
            continue
        total += parameter.numel()
        match = others.get(name)
        if match is not None and match.shape == parameter.shape:
            common += int(((parameter == match) & (parameter != 0.0)).sum())
    return common > _COMMON_SHARE * total


def _is_constant(parameter: Tensor) -> bool:
    values = parameter.detach().flatten()
    return bool((values == values[:1]).all())


def say_missing_untrained(recipe: Recipe, facts: RunFacts, display: Display) -> str | None:
    """`missing_untrained`, said in the first lines, where an evaluator would want the encoder."""
    named = named_evaluators([(slot.name, slot.build()) for slot in recipe.evaluate])
    if not any(each.parts_on("untrained") for each in named):
        return None
    reason = missing_untrained(recipe, facts)
    if reason is not None:
        display.message(f"warning: no untrained baseline: {reason}")
    return reason


def starting_source(recipe: Recipe) -> str | None:
    """What the backbone starts from, in words; None for random weights."""
    found = recipe.backbone.cls.starting_weights(recipe.backbone.config)
    return found.source if found is not None else None


def without_starting_weights(recipe: Recipe) -> Recipe:
    """The recipe with a backbone that is built without loading or downloading weights."""
    return recipe.model_copy(update={"backbone": without_weights(recipe.backbone)})


def without_weights(backbone: Slot[Backbone]) -> Slot[Backbone]:
    """The backbone alone, in the same way."""
    return backbone.with_config(backbone.cls.without_weights(backbone.config))


def initial_method(
    recipe: Recipe, facts: RunFacts, compute: Compute, *, whole: bool = True
) -> Method:
    """The method as it was before the first step, made again from the seed, on the device. whole:
    False for its encoder and projection layers alone."""
    method = make_method(recipe, facts) if whole else make_for_encoder(recipe, facts)
    compute.prepare(method)
    return method


def compile_backbones(method: Method, compute: Compute) -> None:
    """Compiles the encoder, and a teacher's, which is a backbone too; of weights in parts each
    block by itself, since it is brought together between two of them.

    Raises RecipeError where blocks are recomputed: what they do is not for a compiler."""
    if is_recomputed(method):
        raise RecipeError(
            "train.compile: blocks that the backbone recomputes cannot be compiled; set "
            "train.compile=false, or backbone.recompute=false"
        )
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    for module in blocks(method) if compute.sharded else backbones:
        module.compile(mode="reduce-overhead" if compute.cuda_graphs else None)


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


def refuse_unlike_samples(
    source: str, encoder: Backbone, trained: SampleSpec, given: SampleSpec
) -> None:
    """Raises RecipeError where an encoder cannot take other samples than those of its run. source:
    where it is from; trained: what it was trained on; given: what it is to be measured on.

    Channels are held against each other rather than tried out: normalisation by three of them makes
    three of one. Other sides are tried: networks that pool take them."""
    advice = "choose other data, or set its channels where it has the field"
    if trained.is_image and given.is_image:
        if trained.channels != given.channels:
            raise RecipeError(
                f"{source}: its encoder takes images with {trained.channels} channel(s) and those "
                f"of the data have {given.channels}; {advice}"
            )
        return
    kinds = ((each.dtype, len(each.shape), each.channels) for each in (trained, given))
    if len(set(kinds)) > 1:
        raise RecipeError(
            f"{source}: its encoder takes samples of {trained} and those of the data are {given}; "
            f"{advice}"
        )
    if trained.sides != given.sides and given.sides is not None:
        _try(source, encoder, trained, given)


def _try(source: str, encoder: Backbone, trained: SampleSpec, given: SampleSpec) -> None:
    device = next((each.device for each in encoder.parameters()), None)
    sample = torch.zeros(1, *measured_shape(encoder, given), dtype=measured_dtype(given))
    was_training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(sample.to(device))
    except Exception as error:  # a plugin's network, or torch, about its shapes
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{source}: its encoder was trained on samples of {trained} and takes none of {given} "
            f"({reason}); choose other data, or cut or pad it in the data source"
        ) from error
    finally:
        encoder.train(was_training)
