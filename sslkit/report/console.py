"""Tables, lines and paragraphs on a terminal, whatever the text holds that comes from files."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from sslkit.errors import printable


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> None:
    """A table on standard output; on a terminal it wraps to its width, elsewhere it does not."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(Text(printable(column)))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


def print_line(text: str, file: TextIO | None = None) -> None:
    """A line, on standard output by default."""
    print(printable(text), file=file or sys.stdout)


def print_text(text: str, *, indent: str = "") -> None:
    """A paragraph on standard output; on a terminal it wraps between words, elsewhere it does not.
    indent: before all lines but the first."""
    text = printable(text)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(
            text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    print(text)
