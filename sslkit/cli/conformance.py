"""`sslkit plugins check`: the conformance kit on what is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslkit.errors import RecipeError
from sslkit.report.console import print_line

from .completion import complete_component, complete_field, complete_kind, complete_recipe
from .options import AsJson
from .output import print_json

if TYPE_CHECKING:
    from sslkit.testing.kit import Report
    from sslkit.testing.subject import Subject


def plugins_check(
    name: Annotated[
        str,
        typer.Argument(
            help="A component, such as mine or loss:mine, or a distribution.",
            autocompletion=complete_component,
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="Only a component of this kind.", autocompletion=complete_kind),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A recipe that it stands in, where the kit's own does not suit it.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            metavar="FIELD=VALUE",
            help="Set a field of its block: k=20.",
            autocompletion=complete_field,
        ),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Leave out what takes more than about a second.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try the laws of its kind on a component; exit 1 where one is broken."""
    from sslkit.testing.subject import find_subjects

    subjects, others = find_subjects(name, kind, fields_of(field or []), recipe)
    reports = list(shown_reports(subjects, fast=fast, quiet=as_json))
    for component, reason in others.items():
        print_line(f"{component}: not tried: {reason}", file=sys.stderr)
    if as_json:
        print_json([report.to_json() for report in reports])
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


def shown_reports(subjects: list[Subject], *, fast: bool, quiet: bool) -> Iterator[Report]:
    """The report on each component, printed as soon as it is there, unless `quiet`."""
    from sslkit.testing.kit import report_on
    from sslkit.testing.table import print_report

    for subject in subjects:
        report = report_on(subject, fast=fast)
        if not quiet:
            print_report(report)
        yield report


def fields_of(given: list[str]) -> dict[str, Any]:
    """What `-o FIELD=VALUE` set. Raises RecipeError."""
    from sslkit.recipe.yaml_positions import parse_value

    fields = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name.isidentifier():
            raise RecipeError(
                f"-o {each}: expected FIELD=VALUE with a field of the component, such as k=20 or "
                "head='{name: mlp, hidden_dim: 64}'"
            )
        try:
            fields[name] = parse_value(text)
        except ValueError as error:
            raise RecipeError(f"-o {each}: {error}") from error
    return fields
