"""Putting the state of a checkpoint into an experiment, or into a method alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslkit.api import Method, RunFacts
from sslkit.errors import CheckpointError, SSLKitError
from sslkit.nn.batch_norm import has_batch_statistics
from sslkit.nn.network_size import no_larger_than
from sslkit.recipe import Recipe, load_recipe
from sslkit.runs.environment_file import read_environment
from sslkit.runs.folder import run_folder_of
from sslkit.runs.state import read_state, step_of

from .build import Experiment
from .calibration import calibrate_as_in_run
from .networks import make_for_encoder, make_method, without_starting_weights

_REASON = 250
"""Characters of one reason: a list of missing keys can be pages long."""


def restore(experiment: Experiment, state: Mapping[str, Any], source: str) -> None:
    """Puts a checkpoint's state into an experiment. Raises CheckpointError if it does not fit; the
    experiment is then of no use, since parts of the state may have been taken over."""
    step, last = step_of(state, source), experiment.facts.total_steps
    mine, found = experiment.facts.steps_per_epoch, state.get("steps_per_epoch")
    if type(found) is not int or found != mine:
        raise CheckpointError(
            f"{source}: has {found!r:.40} steps an epoch and this recipe {mine} "
            "(batch size or data differ); start a run with backbone.weights instead"
        )
    if step > last:
        raise CheckpointError(
            f"{source}: is at step {step:,}, and the run ends at step {last:,}; it is damaged, or "
            "of another run"
        )
    try:
        experiment.training.load_state_dict(state)
    except Exception as error:  # a file of anybody's: any value may stand anywhere in it
        raise CheckpointError(
            f"{source}: its state does not fit this recipe ({misfit(error)}); to take over the "
            "backbone alone, start a run with backbone.weights"
        ) from error


def misfit(error: Exception) -> str:
    """Why a state does not fit, in one line: the first two reasons that torch gives, and how many
    others there are."""
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    lines = str(error).splitlines() or [type(error).__name__]
    first, *others = [" ".join(line.split()).rstrip(".") for line in lines]
    others = [line for line in others if line]
    if not others:
        return first
    shown = "; ".join(
        line if len(line) <= _REASON else f"{line[:_REASON]}..." for line in others[:2]
    )
    rest = len(others) - 2
    return shown + (f"; and {rest} more" if rest > 0 else "")


def load_method(
    run_or_checkpoint: Path, overrides: Sequence[str] = (), *, whole: bool = False
) -> tuple[Recipe, RunFacts, Method]:
    """Recipe, facts and trained method (on the CPU) of a run or checkpoint. Weights that the run
    started from need not be there any more, nor what only training reads, unless the whole method
    is asked for and not only its encoder and projection layers.

    Raises CheckpointError, RecipeError and RunFolderError."""
    state = read_state(run_or_checkpoint)
    folder = run_folder_of(run_or_checkpoint)
    recipe = load_recipe(folder.recipe, overrides)
    facts = read_environment(folder.path).facts
    weights = state.get("method")
    try:
        with no_larger_than(weights.values() if isinstance(weights, Mapping) else ()):
            make = make_method if whole else make_for_encoder
            method = make(without_starting_weights(recipe), facts)
        method.load_state_dict(state["method"])
    except SSLKitError:
        raise
    except Exception as error:  # a file of anybody's, as above
        raise CheckpointError(
            f"{run_or_checkpoint}: its weights do not fit the recipe ({misfit(error)}); leave "
            "method and backbone as the run has them"
        ) from error
    return recipe, facts, method


def load_measured_method(
    run_or_checkpoint: Path, *, whole: bool = False
) -> tuple[Recipe, RunFacts, Method]:
    """`load_method` with the batch statistics with which the run measures and exports its encoder:
    those of its training images, which must be there where the encoder has BatchNorm."""
    recipe, facts, method = load_method(run_or_checkpoint, whole=whole)
    if has_batch_statistics(method.encoder):
        fingerprint = read_environment(run_folder_of(run_or_checkpoint).path).data.get("train")
        calibrate_as_in_run(method, recipe, run_or_checkpoint, fingerprint)
    return recipe, facts, method.to(memory_format=torch.contiguous_format)
