"""`sslkit sync`: sends a tracker what it missed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from sslkit.report.console import print_line

from .completion import complete_run
from .options import AsJson
from .output import print_json


def sync(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)
    ],
    as_json: AsJson = False,
) -> None:
    """Send a run's tracker what it missed while it could not be reached."""
    from sslkit.workflows.track import sync_run

    sent = sync_run(run)
    if as_json:
        print_json(dataclasses.asdict(sent))
        return
    for file in sent.skipped:
        print_line(f"warning: not uploaded: {file}", file=sys.stderr)
    if sent.run_id is None:
        print_line(f"nothing to send: {run} is not tracked (tracking: {{name: none}})")
    else:
        print_line(
            f"sent {sent.points} metric points and {sent.artifacts} files to run {sent.run_id}"
        )
