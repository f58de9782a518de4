"""What `sslkit plugins check` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sslkit.report.console import print_line, print_table

from .kit import Report


def print_report(report: Report) -> None:
    """A table of the laws, then a line for each that is broken, and what else was measured."""
    print_table(("law", "", "seen", "s"), list(_rows(report)), title=report.component)
    for line in report.broken:
        print_line(f"broken: {line}")
    for note in report.notes:
        print_line(f"note: {note}")
    counts = Counter(row["status"] for row in report.rows)
    print_line(
        f"{report.component}: {counts['passed']} laws met, {counts['failed']} broken, "
        f"{counts['skipped']} say nothing of it, {counts['untried']} not tried"
    )


def _rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """A row for each law, and one for all that wait for the same broken law."""
    waiting: Counter[str] = Counter()
    for row in report.rows:
        if row["waits_for"]:
            waiting[row["waits_for"]] += 1
        else:
            yield row["law"], row["status"], row["text"], f"{row['seconds']:.1f}"
    for law, count in waiting.items():
        laws = "1 law" if count == 1 else f"{count} laws"
        yield laws, "untried", f"until {law} is met", ""
