"""The hooks of sslkit. A plugin implements any of them with ``@sslkit.hookimpl`` in the module
that its entry point (group ``sslkit``) names.

Every hook returns a mapping from a recipe name to ``"module:Class"``. The class is imported only
when a recipe names it, so hook modules need no torch and listing plugins is fast.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookspec = pluggy.HookspecMarker("sslkit")


@hookspec
def register_methods() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Self-supervised methods: subclasses of `sslkit.interfaces.Method`."""


@hookspec
def register_backbones() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Image encoders: subclasses of `sslkit.interfaces.Backbone`."""


@hookspec
def register_heads() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Projection and prediction heads: subclasses of `sslkit.interfaces.Head`."""


@hookspec
def register_losses() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Losses on embeddings: subclasses of `sslkit.interfaces.Loss`."""


@hookspec
def register_augmentations() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Augmentations: subclasses of `sslkit.interfaces.Augmentation`."""


@hookspec
def register_datasets() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Data sources: subclasses of `sslkit.interfaces.Dataset`."""


@hookspec
def register_evaluators() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Evaluation protocols: subclasses of `sslkit.interfaces.Evaluator`."""


@hookspec
def register_optimizers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Optimisers: subclasses of `sslkit.interfaces.Optimizer`."""


@hookspec
def register_schedules() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Learning-rate schedules: subclasses of `sslkit.interfaces.Schedule`."""


@hookspec
def register_trackers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Experiment trackers: subclasses of `sslkit.interfaces.Tracker`."""


@hookspec
def register_callbacks() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Callbacks: subclasses of `sslkit.interfaces.Callback`. Only those that a recipe names run."""
