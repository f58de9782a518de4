"""`sslkit validate`: recipes checked, nothing built."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .options import AsJson, Overrides
from .output import print_json


def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    override: Overrides = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Look at the recipes alone: their data is elsewhere.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check recipes and their data without building anything."""
    from sslkit.workflows.validate import find_problems

    warnings: dict[str, list[str]] = {recipe: [] for recipe in recipes}
    found = {
        recipe: find_problems(recipe, override or [], warnings[recipe], data=not no_data)
        for recipe in recipes
    }
    if as_json:
        print_json({recipe: list(problems) for recipe, problems in found.items()})
    else:
        for recipe, problems in found.items():
            for warning in warnings[recipe]:
                print(f"{recipe}: warning: {warning}", file=sys.stderr)
            print("\n".join(problems) if problems else f"{recipe}: ok")
    if any(found.values()):
        raise typer.Exit(2)
