"""The commands that a recipe goes through: `run`, `plan`, `validate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import SSLKitError

from .options import AsJson, Overrides, required
from .output import print_json


def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file, or the name of a shipped recipe.")
    ] = None,
    override: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|auto", help="Go on with a run folder; auto: the newest unfinished."
        ),
    ] = None,
    fork: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|CHECKPOINT", help="Start a new run from the whole state of another."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, run one step, print the plan.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and track a recipe."""
    from sslkit.engine.display import make_display
    from sslkit.report.tables import print_run
    from sslkit.runs import start

    display, overrides = make_display(sys.stderr), override or []
    if dry_run:
        from sslkit.plan import make_plan
        from sslkit.report.plan import print_plan

        plan = make_plan(required(recipe), overrides, display)
        print_json(plan) if as_json else print_plan(plan)
        return
    try:
        result = start(recipe, overrides, resume=resume, fork=fork, display=display)
    except KeyboardInterrupt:
        raise SSLKitError("stopped before the first step; nothing was kept") from None
    if as_json:
        print_json(
            {
                "run_dir": str(result.run_dir),
                "status": result.status,
                "mlflow_run_id": result.mlflow_run_id,
                "metrics": result.metrics,
            }
        )
    else:
        print_run(result.run_dir, result.results, tracked=result.mlflow_run_id is not None)
    if result.status != "finished":
        raise typer.Exit(1)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and cost, from a few measured steps; keep nothing."""
    from sslkit.engine.display import make_display
    from sslkit.plan import make_plan
    from sslkit.report.plan import print_plan

    found = make_plan(recipe, override or [], make_display(sys.stderr), measure=True)
    print_json(found) if as_json else print_plan(found, recipe=True)


def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check recipes and their data without building anything."""
    from sslkit.runs import find_problems

    warnings: dict[str, list[str]] = {recipe: [] for recipe in recipes}
    found = {recipe: find_problems(recipe, override or [], warnings[recipe]) for recipe in recipes}
    if as_json:
        print_json({recipe: list(problems) for recipe, problems in found.items()})
    else:
        for recipe, problems in found.items():
            for warning in warnings[recipe]:
                print(f"{recipe}: warning: {warning}", file=sys.stderr)
            print("\n".join(problems) if problems else f"{recipe}: ok")
    if any(found.values()):
        raise typer.Exit(2)
