"""`sslkit verify`: a run held against what its recipe expects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_run
from .options import AsJson, OptionalRecipe, Overrides
from .output import print_json


def verify(
    recipe: OptionalRecipe = None,
    override: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Check this finished run, and run nothing.",
            autocompletion=complete_run,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe and hold the result against its `expect` block; exit 1 where it is missed."""
    from sslkit.engine.display import make_display
    from sslkit.report.verification import print_verification
    from sslkit.workflows.verify import verify as make_verification

    found = make_verification(recipe, override or [], run=run, display=make_display(sys.stderr))
    document = found.to_json()
    print_json(document) if as_json else print_verification(document)
    if not found.met:
        raise typer.Exit(1)
