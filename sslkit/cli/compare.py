"""`sslkit compare`: experiments side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_override, complete_run_or_recipe, one_of_words
from .options import BUDGETS, AsJson, Overrides, one_of
from .output import print_json

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_OR_RECIPE...",
        help="Finished run folders, those of `sslkit eval` of weights, recipe files and names of "
        "shipped recipes.",
        autocompletion=complete_run_or_recipe,
    ),
]
Seeds = Annotated[
    int, typer.Option(min=1, help="Runs of each recipe; seeds count up from the recipe's.")
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH=VALUE,VALUE,...",
        help="Run each recipe with each of these values; given again: every combination.",
        autocompletion=complete_override,
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(metavar="ARM", help="The arm that others are held against; default: first."),
]
Match = Annotated[
    str,
    typer.Option(
        metavar="epochs|time",
        help="The budget that arms share: images seen, or training time of the fastest run.",
        autocompletion=one_of_words(*BUDGETS),
    ),
]
TimeTolerance = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="With --match time: how much longer counts as equal."),
]
ComparisonOut = Annotated[
    Path | None,
    typer.Option("-O", "--out", help="Folder of the comparison; default: comparisons/..."),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="cuda:0,cuda:1|cpu,cpu",
        help="Run on these side by side, one run on each at a time; default: one after the other.",
    ),
]
Maps = Annotated[
    str,
    typer.Option(
        "--map",
        metavar="pca,tsne,umap|none",
        help="Maps of the features for the report; neighbours have an option of their own.",
    ),
]
Neighbours = Annotated[
    int,
    typer.Option(min=0, max=20, help="Nearest neighbours shown for each query; 0: none."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show runs, steps, time and disk in total; train nothing."),
]


def compare(
    inputs: Inputs,
    seeds: Seeds = 1,
    vary: Vary = None,
    override: Overrides = None,
    baseline: Baseline = None,
    match: Match = "epochs",
    time_tolerance: TimeTolerance = 0.1,
    out: ComparisonOut = None,
    devices: Devices = None,
    maps: Maps = "pca,tsne",
    neighbours: Neighbours = 6,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Compare experiments over seeds: intervals, paired differences, baselines, cost, a report.

    Recipes are run first. A command that was stopped goes on where it was when it is given
    again."""
    from sslkit.engine.display import make_display
    from sslkit.report.comparison.tables import print_comparison
    from sslkit.report.projection import parse_methods
    from sslkit.workflows.compare.compare import compare as make_comparison
    from sslkit.workflows.compare.devices import parse_devices
    from sslkit.workflows.compare.pictures import PictureOptions
    from sslkit.workflows.compare.request import ComparisonRequest

    request = ComparisonRequest(
        inputs, override or [], vary or [], seeds, one_of(match, BUDGETS, "--match"), out,
        parse_devices(devices) if devices is not None else (),
    )  # fmt: skip
    pictures = PictureOptions(parse_methods(maps), neighbours)
    display = make_display(sys.stderr)
    if dry_run:
        from sslkit.report.plan import print_estimate
        from sslkit.workflows.compare.estimate import estimate

        planned = estimate(request, display=display).to_json()
        print_json(planned) if as_json else print_estimate(planned)
        return
    outcome = make_comparison(
        request, baseline=baseline, time_tolerance=time_tolerance, pictures=pictures,
        display=display,
    )  # fmt: skip
    if as_json:
        print_json(outcome.to_json())
    elif outcome.comparison is not None:
        print_comparison(outcome.comparison, outcome.page)
    if outcome.status != "finished":
        raise typer.Exit(1)
