"""The `data` block that a command is given: that of a recipe, or one spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sslkit.api import DataSource, Slot
from sslkit.errors import RecipeError
from sslkit.host.recipe_files import find_recipe

from .loading import load_recipe


def load_data_block(source: str, overrides: Sequence[str] = ()) -> Slot[DataSource]:
    """The `data` block of a recipe (a file or a shipped name), or the one that `source` spells out,
    such as `{name: image_folder, train: photos}`. Raises RecipeError."""
    if source.lstrip().startswith("{"):  # any complete recipe does for the other fields
        return load_recipe("quickstart", [f"data={source}", *overrides]).data
    if Path(source).is_dir():
        raise RecipeError(
            f"{source}: is a folder; expected a recipe, or a data block in quotes such as "
            f"'{{name: image_folder, train: {source}}}'"
        )
    return load_recipe(find_recipe(source), overrides).data
