"""`sslkit validate`: recipes checked, nothing trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sslkit.report.console import print_line

from .completion import complete_recipe
from .options import AsJson, Overrides
from .output import print_json


def validate(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Recipe files.", autocompletion=complete_recipe),
    ],
    override: Overrides = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Look at the recipes alone: their data is elsewhere.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check recipes and their data, and whether their networks can be built."""
    from sslkit.workflows.validate import validate as check_recipe

    found = {each: check_recipe(each, override or [], data=not no_data) for each in recipes}
    if as_json:
        print_json({recipe: validation.to_json() for recipe, validation in found.items()})
    else:
        for recipe, validation in found.items():
            for warning in validation.warnings:
                print_line(f"{recipe}: warning: {warning}", file=sys.stderr)
            print_line("\n".join(validation.problems) or f"{recipe}: ok")
    if any(validation.problems for validation in found.values()):
        raise typer.Exit(2)
