"""`sslkit ui`: the pages of the tracking store."""

from __future__ import annotations

from typing import Annotated

import typer

from .completion import complete_run_or_recipe


def ui(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe or run folder whose store to open.",
            autocompletion=complete_run_or_recipe,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the pages.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on the store that runs are tracked in."""
    from sslkit.workflows.track import open_ui

    raise typer.Exit(open_ui(recipe, host, port))
