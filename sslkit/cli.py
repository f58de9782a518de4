"""The `sslkit` command. Thin: each command imports what it needs and calls the library.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the run
failed or was stopped, 2 the input was wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from . import __version__
from .errors import SSLKitError
from .plugin_errors import describe_failure

app = typer.Typer(
    name="sslkit",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="--debug, anywhere on the line, shows the traceback of an error.",
)
plugins_app = typer.Typer(no_args_is_help=True, help="What is installed, and what is broken.")
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with the packages.")
app.add_typer(plugins_app, name="plugins")
app.add_typer(recipes_app, name="recipes")

Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="PATH=VALUE", help="Change a field: train.epochs=5."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sslkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Self-supervised learning on images, as an experiment that a recipe describes."""


@app.command()
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
    from .engine.display import make_display
    from .report.tables import print_run
    from .runs import start

    display, overrides = make_display(sys.stderr), override or []
    if dry_run:
        from .plan import make_plan
        from .report.plan import print_plan

        plan = make_plan(_required(recipe), overrides, display)
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


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and cost, from a few measured steps; keep nothing."""
    from .engine.display import make_display
    from .plan import make_plan
    from .report.plan import print_plan

    found = make_plan(recipe, override or [], make_display(sys.stderr), measure=True)
    print_json(found) if as_json else print_plan(found, recipe=True)


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check recipes and their data without building anything."""
    from .runs import find_problems

    found = {recipe: find_problems(recipe, override or []) for recipe in recipes}
    if as_json:
        print_json({recipe: list(problems) for recipe, problems in found.items()})
    else:
        for recipe, problems in found.items():
            print("\n".join(problems) if problems else f"{recipe}: ok")
    if any(found.values()):
        raise typer.Exit(2)


@app.command(name="eval")
def evaluate(
    run_or_checkpoint: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder or a checkpoint.")
    ],
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Protocols; default: those of the run's recipe."),
    ] = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a finished or stopped run again, with any protocol."""
    from .engine.display import make_display
    from .report.tables import print_evaluation
    from .runs import evaluate_run

    names = [name.strip() for name in protocol.split(",")] if protocol else None
    results = evaluate_run(
        run_or_checkpoint, names, override or [], display=make_display(sys.stderr)
    )
    print_json(results.to_json()) if as_json else print_evaluation(results)


@app.command()
def compare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_RECIPE...",
            help="Finished run folders, recipe files and names of shipped recipes.",
        ),
    ],
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each recipe; seeds count up from the recipe's.")
    ] = 1,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=VALUE,VALUE,...",
            help="Run each recipe with each of these values; given again: every combination.",
        ),
    ] = None,
    override: Overrides = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="The arm that others are held against; default: first."),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            metavar="epochs|time",
            help="The budget that arms share: images seen, or training time of the fastest run.",
        ),
    ] = "epochs",
    time_tolerance: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="With --match time: how much longer counts as equal."),
    ] = 0.1,
    out: Annotated[
        Path | None,
        typer.Option("-O", "--out", help="Folder of the comparison; default: comparisons/..."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare experiments over seeds: intervals, paired differences, baselines, cost, a report.

    Recipes are run first, one after the other. A command that was stopped goes on where it was
    when it is given again."""
    from .comparison.orchestration import compare as make_comparison
    from .engine.display import make_display
    from .report.comparison.tables import print_comparison

    if match not in ("epochs", "time"):
        raise typer.BadParameter(f"--match {match}: valid are epochs and time")
    outcome = make_comparison(
        inputs, override or [], vary=vary or [], seeds=seeds, baseline=baseline,
        match="time" if match == "time" else "epochs", time_tolerance=time_tolerance, out=out,
        display=make_display(sys.stderr),
    )  # fmt: skip
    found = outcome.comparison
    if as_json:
        document = found.to_json(outcome.folder) if found else {}
        print_json({"folder": str(outcome.folder), "status": outcome.status, **document})
    elif found is not None:
        print_comparison(found, outcome.folder)
    if outcome.status != "finished":
        raise typer.Exit(1)


@app.command()
def verify(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file, or the name of a shipped recipe.")
    ] = None,
    override: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Check this finished run, and run nothing."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe and hold the result against its `expect` block; exit 1 where it is missed."""
    from .comparison.verification import verify as make_verification
    from .engine.display import make_display
    from .report.verification import print_verification

    found = make_verification(recipe, override or [], run=run, display=make_display(sys.stderr))
    document = found.to_json()
    print_json(document) if as_json else print_verification(document)
    if not found.met:
        raise typer.Exit(1)


@app.command()
def embed(
    run: Annotated[
        str, typer.Argument(help="A run folder, a checkpoint or an encoder.safetensors.")
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|DATA",
            help="A recipe, whose data is taken, or a data block: '{name: digits}'. Default: the "
            "data of the run.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-O", "--out", help="The Parquet file to write.")
    ] = None,
    split: Annotated[str, typer.Option(help="The images to take: train or test.")] = "train",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the features of a data source, by the encoder of a run, to a Parquet file."""
    from .embedding import embed_source

    if out is None:
        raise typer.BadParameter("name the file to write with --out")
    written = embed_source(
        run, out, source, override or [], split=_one_of(split, _SPLITS, "--split"),
        device=_one_of(device, _DEVICES, "--device"),
    )  # fmt: skip
    if as_json:
        print_json(written.to_json())
        return
    labels = "with labels" if written.labels else "without labels"
    left_out = f"; {written.left_out} unreadable images left out" if written.left_out else ""
    print(f"{written.path}: {written.rows:,} features of width {written.width}, {labels}{left_out}")


@app.command()
def pack(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|DATA",
            help="A recipe, whose data is packed, or a data block: '{name: digits}'.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-O", "--out", help="The pack to write.")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of the square images to store, in pixels: the shorter side is resized to "
            "it, then the centre is cut out. Default: images as they are, if all have one size.",
        ),
    ] = None,
    interpolation: Annotated[
        str, typer.Option(help="Of the resize, which is antialiased: bilinear or bicubic.")
    ] = "bilinear",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads that decode; no effect on the file. Default: one a core."
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="PACK", help="Check every pixel of a pack, and write nothing."),
    ] = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Decode a data source once, into one file that the source `pack` maps into memory.

    Both splits go into the file. A command that was stopped goes on where it was when it is given
    again."""
    from .report.packing import pack_facts, pack_source, print_pack, verify_pack

    if verify is not None:
        found = verify_pack(verify, threads)
    elif out is None:
        raise typer.BadParameter("name the file to write with --out")
    else:
        found = pack_source(
            _required(source), out, override or [], size, interpolation, threads=threads
        )
    print_json(pack_facts(found)) if as_json else print_pack(found)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("-O", "--out", help="Write to this file.")] = None,
) -> None:
    """Print the JSON Schema of recipes, installed plugins included, for editors."""
    from .plugins import load_plugins
    from .recipe import json_schema

    text = json.dumps(json_schema(load_plugins().registry), indent=2)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: AsJson = False,
) -> None:
    """Send a run's tracker what it missed while it could not be reached."""
    from .runs import sync_run

    sent = sync_run(run)
    if as_json:
        print_json(dataclasses.asdict(sent))
    else:
        print(f"sent {sent.points} metric points and {sent.artifacts} files to run {sent.run_id}")


@app.command()
def ui(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe or run folder whose store to open.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the pages.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on the store that runs are tracked in."""
    from .runs import open_ui

    raise typer.Exit(open_ui(recipe, host, port))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, plugins and the tracking store on one screen."""
    from .report.doctor import diagnose, print_diagnosis

    found = diagnose()
    print_json(found) if as_json else print_diagnosis(found)


@plugins_app.command(name="list")
def plugins_list(
    kind: Annotated[str | None, typer.Option(help="Only components of this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """Installed plugins and their components; broken ones with the reason."""
    from .plugins import load_plugins
    from .report.listing import plugin_rows, print_plugins

    rows = plugin_rows(load_plugins(), kind)
    print_json(rows) if as_json else print_plugins(rows)


@plugins_app.command(name="show")
def plugins_show(
    name: Annotated[str, typer.Argument(help="A component, such as nt_xent or loss:nt_xent.")],
    as_json: AsJson = False,
) -> None:
    """The fields of a component: type, default, meaning."""
    from .plugins import load_plugins
    from .report.listing import component_fields, print_components

    shown = component_fields(load_plugins().registry, name)
    print_json(shown) if as_json else print_components(shown)


@recipes_app.command(name="list")
def recipes_list(as_json: AsJson = False) -> None:
    """The recipes inside the installed packages."""
    from .recipe_files import shipped_recipes
    from .report.listing import print_recipes, recipe_rows

    rows = recipe_rows(shipped_recipes())
    print_json(rows) if as_json else print_recipes(rows)


@recipes_app.command(name="copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="As in `sslkit recipes list`.")],
    target: Annotated[Path | None, typer.Argument(help="File or folder; default: here.")] = None,
) -> None:
    """Copy a shipped recipe, to change it."""
    from .recipe_files import copy_recipe

    print(copy_recipe(name, target or Path()))


def print_json(document: Any) -> None:
    """One JSON document on standard output. JSON has no NaN and no infinity: they become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_Choice = TypeVar("_Choice", bound=str)
_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_DEVICES = ("auto", "cpu", "cuda", "mps")


def _one_of(given: str, valid: tuple[_Choice, ...], option: str) -> _Choice:
    for choice in valid:
        if choice == given:
            return choice
    raise typer.BadParameter(f"{option}: got {given!r}; valid is {', '.join(valid)}")


def _required(recipe: str | None) -> str:
    if recipe is None:
        raise typer.BadParameter("a recipe is needed here")
    return recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        app(words, prog_name="sslkit")
    except SSLKitError as error:
        if debug:
            raise
        lines = str(error).splitlines()
        print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that cannot be written
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # a plugin's, or ours: one line, and the rest on request
        if debug:
            raise
        print(
            f"error: {describe_failure(error)}. The same command with --debug shows the traceback",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
