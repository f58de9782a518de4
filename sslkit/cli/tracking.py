"""The commands on the tracking store and the machine: `sync`, `ui`, `doctor`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson
from .output import print_json


def sync(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: AsJson = False,
) -> None:
    """Send a run's tracker what it missed while it could not be reached."""
    from sslkit.workflows.track import sync_run

    sent = sync_run(run)
    if as_json:
        print_json(dataclasses.asdict(sent))
        return
    for file in sent.skipped:
        print(f"warning: not uploaded: {file}", file=sys.stderr)
    if sent.run_id is None:
        print(f"nothing to send: {run} is not tracked (tracking: {{name: none}})")
    else:
        print(f"sent {sent.points} metric points and {sent.artifacts} files to run {sent.run_id}")


def ui(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe or run folder whose store to open.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the pages.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on the store that runs are tracked in."""
    from sslkit.workflows.track import open_ui

    raise typer.Exit(open_ui(recipe, host, port))


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, plugins and the tracking store on one screen."""
    from sslkit.report.doctor import diagnose, print_diagnosis

    found = diagnose()
    print_json(found) if as_json else print_diagnosis(found)
