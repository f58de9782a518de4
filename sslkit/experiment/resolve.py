"""A recipe with everything written out that depends on the machine or on the length of the run."""

from __future__ import annotations

from sslkit.api import RunFacts
from sslkit.engine.compute_settings import check_cuda_graphs, resolve_compile, resolve_device
from sslkit.recipe import Recipe

LOG_STEPS = 50


_LEAST_POINTS = 10
"""Points of a curve, where the run has as many steps."""


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that depends on the machine written out (law 4)."""
    train = recipe.train
    augmentation = train.compile_augmentation
    settled = {
        "device": resolve_device(train.device),
        "compile": resolve_compile(train.compile),
        "compile_augmentation": resolve_compile(
            train.compile if augmentation is None else augmentation, "compile_augmentation"
        ),
    }
    resolved = train.model_copy(update=settled)
    check_cuda_graphs(resolved)
    return recipe.model_copy(update={"train": resolved})


def settle(recipe: Recipe, facts: RunFacts) -> Recipe:
    """The recipe with everything that depends on the length of the run written out (law 4)."""
    if recipe.train.log_every_steps is not None:
        return recipe
    steps = max(1, min(LOG_STEPS, facts.total_steps // _LEAST_POINTS))
    train = recipe.train.model_copy(update={"log_every_steps": steps})
    return recipe.model_copy(update={"train": train})
