"""`sslkit reproduce`: a run made once more, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import RecipeError

from .completion import complete_override, complete_run
from .options import AsJson, processes
from .output import print_json

Other = Annotated[
    Path | None,
    typer.Option(
        "--with",
        metavar="RUN",
        help="Compare with this run, and make none.",
        autocompletion=complete_run,
    ),
]


def reproduce(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)
    ],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            metavar="PATH=VALUE",
            help="Change a path of the data, train.device, the seed.",
            autocompletion=complete_override,
        ),
    ] = None,
    until: Annotated[
        int | None, typer.Option(metavar="STEP", help="Compare up to this step and no further.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-O", "--out", help="Make the new run here; default: reproductions/<run>."),
    ] = None,
    other: Other = None,
    nproc: Annotated[
        str | None, typer.Option(metavar="N", help="Processes; default: as many as it had.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run once more and say whether it is bit-equal; exit 1 where it is not, and why."""
    from sslkit.engine.display import make_display
    from sslkit.report.reproduction import print_reproduction
    from sslkit.workflows.reproduce import Rerun, hold_against
    from sslkit.workflows.reproduce import reproduce as make_again

    if other is not None:
        if override or out or nproc:
            raise RecipeError("--with makes no run, so that -o, --out and --nproc mean nothing")
        found = hold_against(run, other, until)
    else:
        count = None if nproc is None else processes(nproc)
        found = make_again(run, Rerun(override or [], until, out, count), make_display(sys.stderr))
    document = found.to_json()
    print_json(document) if as_json else print_reproduction(document)
    if not found.bit_equal:
        raise typer.Exit(1)
