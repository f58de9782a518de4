"""`sslkit eval`: measures a run again, or any weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import RecipeError
from sslkit.report.console import print_line

from .completion import complete_evaluators, complete_recipe, complete_run
from .options import AsJson, Overrides
from .output import print_json

What = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN|WEIGHTS",
        help="A run folder or a checkpoint; with --recipe a file of weights too.",
        autocompletion=complete_run,
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Protocols; default: those of the recipe.",
        autocompletion=complete_evaluators,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Measure weights: on the data of this recipe, with its protocols and its backbone.",
        autocompletion=complete_recipe,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="With --recipe: a timm model in place of the recipe's backbone; without WEIGHTS its "
        "published ones.",
    ),
]


def evaluate(
    what: What = None,
    protocol: Protocol = None,
    recipe: RecipeOption = None,
    backbone: Backbone = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run again, or any weights, with any evaluator; log the results."""
    from sslkit.engine.display import make_display
    from sslkit.report.terminal import display_path, print_evaluation
    from sslkit.workflows.evaluate import evaluate_run, evaluate_weights

    names = [name.strip() for name in protocol.split(",")] if protocol is not None else None
    display = make_display(sys.stderr)
    if recipe is not None:
        weights = Path(what) if what is not None else None
        found = evaluate_weights(weights, recipe, names, override or [], display, model=backbone)
    elif backbone is not None:
        raise RecipeError("--backbone also needs the --recipe to measure by")
    elif what is None:
        raise RecipeError("name a run folder, or weights with the --recipe to measure by")
    else:
        found = evaluate_run(what, names, override or [], display)
    if as_json:
        print_json(found.to_json())
    else:
        print_evaluation(found.results)
        if found.kept is not None:
            print_line(f"kept in: {display_path(found.kept)}")
    if not found.results.trained.metrics and found.results.trained.skipped:
        raise typer.Exit(1)
