"""`sslkit recipes list` and `sslkit recipes copy`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import RecipeError
from sslkit.report.console import print_line

from .completion import complete_shipped_recipe
from .options import AsJson
from .output import print_json
from .schema import write_schema


def recipes_list(as_json: AsJson = False) -> None:
    """The recipes inside the installed packages."""
    from sslkit.host.recipe_files import shipped_recipes
    from sslkit.report.listing import print_recipes, recipe_rows

    rows = recipe_rows(shipped_recipes())
    print_json(rows) if as_json else print_recipes(rows)


def recipes_copy(
    name: Annotated[
        str,
        typer.Argument(help="As in `sslkit recipes list`.", autocompletion=complete_shipped_recipe),
    ],
    target: Annotated[Path | None, typer.Argument(help="File or folder; default: here.")] = None,
) -> None:
    """Copy a shipped recipe, to change it, and the schema by which editors check it."""
    from sslkit.host.recipe_files import copy_recipe

    path = copy_recipe(name, target or Path())
    print_line(str(path))
    try:
        print_line(f"its schema, for editors: {write_schema(path.parent)}", file=sys.stderr)
    except (RecipeError, OSError) as error:  # the recipe works without
        print_line(f"warning: {error}", file=sys.stderr)
