"""What `sslkit plugins check` prints."""

from __future__ import annotations

from sslkit.report.console import print_line, print_table

from .kit import Report


def print_report(report: Report) -> None:
    """A table of the laws, then a line for each that is broken, and what else was measured."""
    rows = [
        (row["law"], row["status"], row["text"], f"{row['seconds']:.1f}") for row in report.rows
    ]
    print_table(("law", "", "seen", "s"), rows, title=report.component)
    for line in report.broken:
        print_line(f"broken: {line}")
    for note in report.notes:
        print_line(f"note: {note}")
    counts = [row["status"] for row in report.rows]
    print_line(
        f"{report.component}: {counts.count('passed')} laws met, {counts.count('failed')} broken, "
        f"{counts.count('skipped')} not tried"
    )
