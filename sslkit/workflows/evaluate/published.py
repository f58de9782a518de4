"""Models that installed backbones know by name, with published weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sslkit.errors import CheckpointError, PluginError
from sslkit.host.plugins import load_plugins
from sslkit.host.registry import did_you_mean


def published_block(model: str) -> dict[str, Any]:
    """The block of a model with its published weights. Raises CheckpointError."""
    for name, fields in _publishers(model):
        return {"name": name, **fields}
    known = [name for _, cls in _backbones() for name in cls.published_names()]
    guess = did_you_mean(model, known)
    raise CheckpointError(
        f"--backbone {model}: no installed backbone has a model of this name{guess}"
    )


def say_published(path: Path) -> str:
    """What to do where a path that is not there is the name of a model; empty where it is none."""
    if next(_publishers(str(path)), None) is None:
        return ""
    return f"; the model of this name is measured by --backbone {path} --recipe RECIPE"


def started_from(block: Mapping[str, Any], weights: Path) -> Mapping[str, Any] | None:
    """The block of a backbone, started from these weights; None where its component is not known,
    which is found when the recipe is validated. Raises CheckpointError."""
    try:
        cls: Any = load_plugins().registry.resolve("backbone", str(block.get("name"))).cls
    except PluginError:
        return None
    found: Mapping[str, Any] | None = cls.from_weights(block, weights)
    if found is None:
        raise CheckpointError(
            f"{weights}: the backbone '{block['name']}' starts from no weight file; name one that "
            "does in the recipe, or give --backbone MODEL"
        )
    return found


def _publishers(model: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and fields of every backbone that knows a model by this name."""
    for name, cls in _backbones():
        if (fields := cls.published(model)) is not None:
            yield name, fields


def _backbones() -> Iterator[tuple[str, Any]]:
    """Name and class of every backbone that can be loaded, built-in ones first."""
    registry = load_plugins().registry
    entries = registry.entries("backbone")
    for entry in sorted(entries, key=lambda entry: entry.distribution != "sslkit"):
        try:
            cls: Any = registry.resolve(entry.kind, entry.qualified).cls
        except PluginError:
            continue
        yield entry.name if entry.distribution == "sslkit" else entry.qualified, cls
