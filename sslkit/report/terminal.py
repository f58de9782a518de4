"""What a person reads on the terminal when a run or an evaluation is over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .console import print_line, print_table

if TYPE_CHECKING:
    from .final_results import FinalResults

TITLE = "Scores in %, last epoch; [95 % intervals] for this one training (n = 1 seed)"


def print_evaluation(results: FinalResults) -> None:
    """The table of accuracies, the other metrics, and what was skipped."""
    heads, rows = results.table()
    if rows:
        print_table(heads, rows, title=TITLE)
    for key, value in results.others().items():
        if "/" not in key.removeprefix("eval/").partition("/")[2]:  # its parts are in the report
            print_line(f"{key} {value:.4g}")
    for protocol, reason in results.trained.skipped.items():
        print_line(f"{protocol}: skipped: {reason}")
    for note in results.notes():
        print_line(f"note: {note}")
    for sentence in results.sentences():
        print_line(sentence)


def print_run(run_dir: Path, results: FinalResults | None, *, tracked: bool) -> None:
    """The end of a run: the table, where everything is, and how to look at it."""
    if results is not None:
        print_evaluation(results)
        print()
    print_line(f"run folder: {display_path(run_dir)}")
    if tracked:
        print("open MLflow with: sslkit ui")


def display_path(path: Path) -> str:
    """A path as a person would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
