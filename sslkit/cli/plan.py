"""`sslkit plan`: what a run would do and cost."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .options import AsJson, Overrides, RecipeArgument, processes
from .output import print_json


def plan(
    recipe: RecipeArgument,
    override: Overrides = None,
    nproc: Annotated[
        str, typer.Option(metavar="N", help="Processes that would share every batch.")
    ] = "1",
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and cost, from a few measured steps; keep nothing."""
    from sslkit.engine.display import make_display
    from sslkit.report.plan import print_plan
    from sslkit.workflows.plan import make_plan

    display = make_display(sys.stderr)
    plan = make_plan(recipe, override or [], display, measure=True, processes=processes(nproc))
    found = plan.to_json()
    print_json(found) if as_json else print_plan(found, recipe=True)
