"""`sslkit slurm`: a recipe as a batch file for SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overrides, RecipeArgument


def slurm(
    recipe: RecipeArgument,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    tasks_per_node: Annotated[
        int, typer.Option(min=1, help="Processes on each machine: one for each of its devices.")
    ] = 1,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, help="Processors for each process.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Until the job saves and is queued again, as sbatch has it: 24:00:00."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Where to run.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another option of sbatch: account=lab, mem=64G."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-O", "--out", help="The new file; default: standard output.")
    ] = None,
    override: Overrides = None,
) -> None:
    """Write the batch file that runs a recipe under SLURM, and goes on after each preemption.

    Submit what it prints: sslkit slurm RECIPE --nodes 2 --tasks-per-node 4 | sbatch"""
    from sslkit.workflows.slurm import Allocation, keep_batch_file, write_batch_file

    allocation = Allocation(
        nodes, tasks_per_node, cpus_per_task, time, partition, tuple(sbatch or ())
    )
    made = write_batch_file(recipe, override or [], allocation)
    if out is None:
        print(made.text, end="")
    else:
        keep_batch_file(made, out)
        print(f"{out}: submit it with sbatch; the run will be in {made.runs_dir}")
