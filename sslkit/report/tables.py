"""What a person reads on the terminal when a run, a plan or an evaluation is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import print_table

if TYPE_CHECKING:
    from .results import FinalResults

TITLE = "Accuracy in %, last epoch; [95 % intervals] over draws of labels"


def print_evaluation(results: FinalResults) -> None:
    """The table of accuracies, the other metrics, and what was skipped."""
    heads, rows = results.table()
    if rows:
        print_table(heads, rows, title=TITLE)
    for key, value in results.others().items():
        print(f"{key} {value:.4g}")
    for protocol, reason in results.trained.skipped.items():
        print(f"{protocol}: skipped: {reason}")
    if results.cost is not None:
        print(results.cost.sentence())


def print_run(run_dir: Path, results: FinalResults | None, *, tracked: bool) -> None:
    """The end of a run: the table, where everything is, and how to look at it."""
    if results is not None:
        print_evaluation(results)
        print()
    print(f"run folder: {display_path(run_dir)}")
    if tracked:
        print("open MLflow with: sslkit ui")


def print_plan(plan: Mapping[str, Any]) -> None:
    """What a dry run found."""
    views = ", ".join(f"{view['role']} {view['size']} px" for view in plan["views"])
    curve = ", ".join(f"{point['lr']:.3g} at {point['step']}" for point in plan["lr_curve"])
    parameters = plan["parameters"]
    labels = f"{plan['classes']} classes" if plan["classes"] else "no labels"
    print_table(
        ("plan", plan["recipe"]),
        [
            ("recipe hash", plan["recipe_hash"]),
            ("device", f"{plan['device']}, {plan['precision']}"),
            ("data", f"{plan['images']:,} images, {labels}"),
            ("views", views),
            ("batch", f"{plan['batch_size']:,} images a step"),
            ("steps", f"{plan['total_steps']:,}, {plan['steps_per_epoch']:,} an epoch"),
            ("parameters", f"{parameters['encoder']:,} in the encoder, "
                           f"{parameters['trainable']:,} trained, {parameters['all']:,} in all"),
            ("learning rate", curve),
            ("first step", f"loss {plan['first_loss']:.4f}, {plan['first_step_seconds']:.2f} s, "
                           f"{plan['peak_memory_mb']:,.0f} MB"),
        ],
    )  # fmt: skip
    print("the dry run built everything and took one step; nothing was kept")


def display_path(path: Path) -> str:
    """A path as a person would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
