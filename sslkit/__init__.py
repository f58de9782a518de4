"""sslkit: a plugin-based experiment framework for self-supervised learning on images."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pluggy

from .deprecation import INTERFACE_VERSION, keep_moved_modules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .api import Backbone
    from .host.registry import Registry
    from .workflows.execute import RunResult

try:
    __version__ = version("sslkit")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+source"

keep_moved_modules()
hookimpl = pluggy.HookimplMarker("sslkit")
"""Marks a function of a plugin module as the implementation of a hook."""

__all__ = [
    "INTERFACE_VERSION",
    "__version__",
    "hookimpl",
    "installed_components",
    "load_encoder",
    "run",
]


def run(recipe: str | Path, overrides: Sequence[str] = ()) -> RunResult:
    """Runs a recipe. overrides: `"train.epochs=5"` and the like, as with `sslkit run -o`.

    Raises RecipeError, PluginError, DataError or TrainingError."""
    from .workflows.train import run_recipe

    return run_recipe(recipe, overrides)


def load_encoder(run_or_checkpoint: str | Path) -> Backbone:
    """The trained encoder of a run folder or checkpoint, in eval mode: (B, C, S, S) images in
    [0, 1] to (B, num_features); `.preprocess` says how to make such images.

    Its batch statistics are those that the run is measured with. For a checkpoint they are computed
    from the run's training images, which must be there; a finished run has them in a file. Raises
    CheckpointError, also where such images are missing."""
    from .experiment.encoder import load_encoder as load

    return load(run_or_checkpoint)


@cache
def installed_components() -> Registry:
    """The components of every installed plugin. Read once: a plugin that is installed later is seen
    by the next process."""
    from .host.plugins import load_plugins

    return load_plugins().registry
