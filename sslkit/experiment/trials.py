"""What is tried on built components before the first step."""

from __future__ import annotations

import shutil
from contextlib import suppress

import torch

from sslkit.api import Augmentation, Backbone, Method, OwnDataEvaluator, RunFacts
from sslkit.api.schedules import checked_factor, sampled_steps
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.repeatable import check_augmentation, check_reader
from sslkit.engine.torch_faults import Convolution, find_faulty, recorded_convolutions
from sslkit.errors import PluginError, RecipeError
from sslkit.evaluation.features import eval_mode
from sslkit.nn.compute import Compute
from sslkit.recipe import Recipe, components, scheduled_numbers
from sslkit.runs.folder import RunFolder

from .samples import measured_dtype, measured_shape


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
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise PluginError(f"{who} cannot take {what} {tuple(images.shape)}: {reason}") from error
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
