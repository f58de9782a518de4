"""What a run is: its tags at a tracker, and what the recipe does not say about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslkit.api import RunFacts
from sslkit.nn.compute import Compute
from sslkit.parallel.launch import read_launch
from sslkit.recipe import Recipe, backbone_name, components, file_digests, recipe_hash
from sslkit.runs.environment import code_digests, describe, git_state

from .stores import Stores


def run_tags(recipe: Recipe) -> dict[str, str]:
    """The tags of a run, under the names that stay."""
    git = git_state(Path.cwd())
    origins = {slot.distribution: slot.version for _, slot in components(recipe)}
    tags = {
        "sslkit.method": recipe.method.name,
        "sslkit.backbone": backbone_name(recipe),
        "sslkit.dataset": recipe.data.name,
        "sslkit.seed": str(recipe.seed),
        "sslkit.recipe_hash": recipe_hash(recipe),
        "sslkit.version": origins.get("sslkit", "unknown"),
        "sslkit.plugins": ", ".join(
            f"{name} {version}" for name, version in sorted(origins.items())
        ),
    }
    if git is not None:
        tags |= {"mlflow.source.git.commit": git.commit, "sslkit.git_dirty": str(git.dirty).lower()}
    return tags


def describe_run(
    recipe: Recipe, facts: RunFacts, stores: Stores, compute: Compute
) -> dict[str, Any]:
    """What the recipe does not say about a run, here and now."""
    used = [slot for _, slot in components(recipe)]
    found = describe(
        device=str(compute.device),
        plugins={slot.distribution: slot.version for slot in used},
        data=stores.fingerprints,
        files=file_digests(recipe),
        processes=compute.world.size,
        launch=launch.name if (launch := read_launch()) is not None else None,
    )
    modules = {"sslkit": "sslkit", **{slot.distribution: slot.cls.__module__ for slot in used}}
    return found | {
        "code": code_digests(modules),
        "facts": asdict(facts),
        "sources": {name: split.details for name, split in stores.present().items()},
    }
