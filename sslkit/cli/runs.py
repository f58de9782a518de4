"""`sslkit runs list`, `show`, `best` and `clean`: what lies in the folders of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslkit.report.console import print_line

from .completion import complete_run, one_of_words
from .options import DIRECTIONS, AsJson, one_of
from .output import print_json, print_path

if TYPE_CHECKING:
    from sslkit.workflows.run_list import RunQuery

Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FOLDER", help="Look in these and below; default: runs and comparisons."
    ),
]
Name = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Only folders of this name: 'simclr-*'.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE", help="Only recipes with this value: method.name=simclr. Repeatable."
    ),
]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="Only running, finished, stopped, failed, stale or damaged ones. Repeatable.",
    ),
]


def runs_list(
    folders: Folders = None,
    sort: Annotated[
        str, typer.Option(metavar="age|name|step|METRIC", help="A metric: the best first.")
    ] = "age",
    state: States = None,
    where: Where = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """All run folders: state, age, step and last scores."""
    from sslkit.report.run_table import print_runs
    from sslkit.workflows.run_list import run_to_json, sort_runs

    found = sort_runs(_query(folders, where, name, state).find(), sort)
    rows = [run_to_json(run) for run in found]
    print_json(rows) if as_json else print_runs(rows, sort)


def runs_show(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)
    ],
    as_json: AsJson = False,
) -> None:
    """One run: state, recipe, scores, what it ran on, and how to go on."""
    from sslkit.report.run_details import print_run_details
    from sslkit.workflows.run_details import describe_run_folder

    found = describe_run_folder(run).to_json()
    print_json(found) if as_json else print_run_details(found)


def runs_best(
    metric: Annotated[str, typer.Argument(metavar="METRIC", help="Such as eval/knn/top1.")],
    folders: Folders = None,
    where: Where = None,
    name: Name = None,
    direction: Annotated[
        str | None,
        typer.Option(
            metavar="highest|lowest",
            help="Which value is best, where it is not known.",
            autocompletion=one_of_words(*DIRECTIONS),
        ),
    ] = None,
    path: Annotated[bool, typer.Option("--path", help="Print its path and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """The finished run that is best by a metric: scores high, losses low."""
    from sslkit.report.run_table import print_best
    from sslkit.workflows.run_list import best_run

    known = None if direction is None else one_of(direction, DIRECTIONS, "--direction")
    found = best_run(_query(folders, where, name), metric, known)
    if as_json:
        print_json(found.to_json())
    elif path:
        print_path(found.run.path)
    else:
        print_best(found.to_json())


def runs_clean(
    folders: Folders = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Also stopped, failed and stale runs that could still go on."
        ),
    ] = False,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints", help="Also all checkpoints of finished runs but the last."),
    ] = False,
    where: Where = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Remove what nobody can go on from: runs that saved nothing, and leftovers of kills."""
    from sslkit.report.run_table import print_removals
    from sslkit.workflows.run_cleaning import clean

    found = clean(
        _query(folders, where, name), unfinished=unfinished, checkpoints=checkpoints, remove=yes
    )
    print_json(found.to_json()) if as_json else print_removals(found.to_json())
    if found.failed:
        print_line(f"{found.failed} could not be removed, see above")
        raise typer.Exit(1)


def _query(
    folders: list[Path] | None,
    where: list[str] | None,
    name: str | None,
    state: list[str] | None = None,
) -> RunQuery:
    from sslkit.workflows.run_list import RunQuery

    return RunQuery(folders or [], state or [], where or [], name)
