"""`sslkit recipes list` and `sslkit recipes copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslkit.report.console import print_line

from .options import AsJson
from .output import print_json


def recipes_list(as_json: AsJson = False) -> None:
    """The recipes inside the installed packages."""
    from sslkit.host.recipe_files import shipped_recipes
    from sslkit.report.listing import print_recipes, recipe_rows

    rows = recipe_rows(shipped_recipes())
    print_json(rows) if as_json else print_recipes(rows)


def recipes_copy(
    name: Annotated[str, typer.Argument(help="As in `sslkit recipes list`.")],
    target: Annotated[Path | None, typer.Argument(help="File or folder; default: here.")] = None,
) -> None:
    """Copy a shipped recipe, to change it."""
    from sslkit.host.recipe_files import copy_recipe

    print_line(str(copy_recipe(name, target or Path())))
