"""The tags of a run, under the names that stay."""

from __future__ import annotations

from pathlib import Path

from sslkit.recipe import Recipe, backbone_name, components, recipe_hash
from sslkit.runs.environment import git_state


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
