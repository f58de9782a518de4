"""The batch statistics of networks that come from a checkpoint.

A checkpoint holds BatchNorm's running statistics, with which training goes on. A run measures and
exports its encoder with those of its training images (decision 0038); here they are computed again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from sslkit.api import Method
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import calibrate
from sslkit.data.splits import open_splits
from sslkit.errors import CheckpointError, DataError, RecipeError, message_of
from sslkit.nn.batch_norm import has_batch_statistics
from sslkit.recipe import Recipe

from .resolve import evaluation_compute
from .stores import open_store


def calibrate_as_in_run(
    method: Method,
    recipe: Recipe,
    source: Path,
    fingerprint: str | None,
    store: CachedSplit | None = None,
) -> CachedSplit | None:
    """Gives the encoder and the projection layers of a checkpoint the batch statistics with which
    its run measures and exports them, in place; the method stays where it is. Returns the training
    images that they are of, None where there are no such layers.

    recipe, fingerprint: of the run, and of its training images. source: what messages call the
    checkpoint. store: its training images, where they are open already. Raises CheckpointError
    where they cannot be opened or have changed."""
    network = nn.Sequential(method.encoder, *method.projection_layers)
    if not has_batch_statistics(network):
        return None
    store = store or _open(recipe, source)
    if fingerprint not in (None, store.fingerprint):
        raise _without_images(
            source, f"have changed (fingerprint {fingerprint}, now {store.fingerprint})"
        )
    home = next(method.parameters()).device
    compute = evaluation_compute(recipe)
    compute.prepare(network)
    calibrate(network, store, method.encoder.preparation, seed=recipe.seed, compute=compute)
    replace(compute, device=home).prepare(network)
    return store


def _open(recipe: Recipe, source: Path) -> CachedSplit:
    try:
        return open_store(recipe, recipe.data, open_splits(recipe.data).train)
    except (RecipeError, DataError, OSError) as error:
        raise _without_images(source, f"cannot be opened ({message_of(error)})") from error


def _without_images(source: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: an encoder with BatchNorm is measured and exported with the statistics of its "
        f"run's training images, which {what}; go where they are, or take the "
        "encoder.safetensors of a finished run, which has them"
    )
