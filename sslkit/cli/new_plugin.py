"""`sslkit plugins new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslkit.report.console import print_line

from .completion import complete_kind, one_of_words


def plugins_new(
    name: Annotated[str, typer.Argument(help="What recipes will call it, such as my-loss.")],
    kind: Annotated[
        str,
        typer.Option(
            help="method, backbone, head, loss, augmentation, dataset, evaluator, optimizer, "
            "schedule, tracker or callback.",
            autocompletion=complete_kind,
        ),
    ],
    folder: Annotated[Path, typer.Option(help="Where sslkit-NAME is made.")] = Path(),
    license: Annotated[
        str,
        typer.Option(
            help="apache-2.0, mit or bsd-3-clause.",
            autocompletion=one_of_words("apache-2.0", "mit", "bsd-3-clause"),
        ),
    ] = "apache-2.0",
    author: Annotated[str, typer.Option(help="For the licence; default: git's user.name.")] = "",
) -> None:
    """Make a plugin package that works as it is, to change: component, recipe, tests, CI."""
    from sslkit.workflows.new_plugin import new_plugin

    made = new_plugin(name, kind, folder, license, author)
    print_line(f"{made.path}: the {kind} {made.component}, {made.license}")
    for file in made.files:
        print_line(f"  {file}")
    print_line("next:")
    print_line(f"  pip install -e '{made.path}[dev]'")
    print_line(f"  pytest {made.path}")
    print_line(f"  sslkit run {made.component}")
