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
    """Self-supervised methods: subclasses of `sslkit.api.Method`."""


@hookspec
def register_backbones() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Image encoders: subclasses of `sslkit.api.Backbone`."""


@hookspec
def register_heads() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Projection and prediction heads: subclasses of `sslkit.api.Head`."""


@hookspec
def register_losses() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Losses on embeddings: subclasses of `sslkit.api.Loss`."""


@hookspec
def register_augmentations() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Augmentations: subclasses of `sslkit.api.Augmentation`."""


@hookspec
def register_datasets() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Data sources: subclasses of `sslkit.api.DataSource`."""


@hookspec
def register_evaluators() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Evaluators: subclasses of `sslkit.api.Evaluator`."""


@hookspec
def register_optimizers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Optimisers: subclasses of `sslkit.api.Optimizer`."""


@hookspec
def register_schedules() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Learning-rate schedules: subclasses of `sslkit.api.Schedule`."""


@hookspec
def register_trackers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Experiment trackers: subclasses of `sslkit.api.Tracker`."""


@hookspec
def register_callbacks() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Callbacks: subclasses of `sslkit.api.Callback`. Only those that a recipe names run."""
