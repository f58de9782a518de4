"""`sslkit run`: trains, evaluates and tracks a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslkit import environment_variables as variables
from sslkit.errors import SSLKitError

from .completion import complete_resume, complete_run
from .options import AsJson, OptionalRecipe, Overrides, processes, required
from .output import print_json

if TYPE_CHECKING:
    from sslkit.engine.signals import StopSignals


Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|auto",
        help="Go on with a run folder; auto: the newest unfinished.",
        autocompletion=complete_resume,
    ),
]
Fork = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN|CHECKPOINT",
        help="Start a new run from the whole state of another.",
        autocompletion=complete_run,
    ),
]
Processes = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Processes on this machine that share every batch, one for each GPU. On several "
        "machines: torchrun, or srun.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Build everything, run one step, print the plan. With --resume: repeat the step that "
        "was not finite and name what began it. Keeps nothing.",
    ),
]


def run(
    recipe: OptionalRecipe = None,
    override: Overrides = None,
    resume: Resume = None,
    fork: Fork = None,
    nproc: Processes = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and track a recipe."""
    from sslkit.engine.signals import StopSignals
    from sslkit.parallel.finding import is_one_of_several
    from sslkit.parallel.local import is_to_start, most_processes, run_processes

    count = None if nproc is None else processes(nproc, None if dry_run else most_processes())
    if count is not None and not dry_run and is_to_start(count):
        raise typer.Exit(
            run_processes([sys.executable, "-P", "-m", "sslkit", *sys.argv[1:]], count)
        )

    if is_one_of_several():  # before torch is imported: a rank that is gone is said in one line
        variables.TORCH_CPP_LOG_LEVEL.set_default("ERROR")
    with StopSignals(at_once=True) as stop:  # before the imports, which take seconds
        try:
            plan_for = (count or 1) if dry_run else None
            status = _run(recipe, override, resume, fork, plan_for, as_json, stop)
        except KeyboardInterrupt:
            if stop.requested is None:
                raise
            raise SSLKitError(f"stopped by {stop.requested}") from None
    if status != "finished":
        raise typer.Exit(1)


def _run(
    recipe: str | None,
    override: list[str] | None,
    resume: str | None,
    fork: Path | None,
    plan_for: int | None,
    as_json: bool,
    stop: StopSignals,
) -> str:
    """The status of the run. plan_for: a dry run, for so many processes; None: a real one."""
    from sslkit.engine.display import make_display
    from sslkit.report.terminal import print_run
    from sslkit.workflows.train import start

    display, overrides = make_display(sys.stderr), override or []
    if plan_for and resume is not None:
        from sslkit.workflows.replay import replay

        found = replay(Path(resume), overrides, display)
        print_json(found.to_json()) if as_json else print(found)
        return "finished"
    if plan_for:
        from sslkit.report.plan import print_plan
        from sslkit.workflows.plan import make_plan

        plan = make_plan(required(recipe), overrides, display, processes=plan_for).to_json()
        print_json(plan) if as_json else print_plan(plan)
        return "finished"
    result = start(recipe, overrides, resume=resume, fork=fork, display=display, stop=stop)
    if not result.speaks:
        return result.status
    if as_json:
        print_json(result.to_json())
    else:
        print_run(result.run_dir, result.results, tracked=result.mlflow_run_id is not None)
    return result.status
