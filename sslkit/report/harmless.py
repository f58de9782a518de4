"""Text from elsewhere, such as names, notes and what files of strangers say, made harmless for
where it is shown: Markdown, HTML, a figure. For terminals, see `sslkit.errors.printable`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from sslkit.errors import printable

_RUNS = re.compile("`+")


def in_markdown(text: str) -> str:
    """One line that is no heading, no element of HTML, no picture and no link."""
    line = printable(" ".join(text.split()))
    return line.replace("<", "&lt;").replace("](", "]\\(")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """A table in Markdown, one line at a time."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(in_markdown(cell).replace('|', chr(92) + '|') for cell in row)} |"


def fenced(text: str, language: str) -> str:
    """A block of code in Markdown that nothing in the text ends."""
    fence = "`" * max(3, 1 + max(map(len, _RUNS.findall(text)), default=0))
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def in_html(text: str) -> str:
    """Text between elements, and in quoted attributes; without characters that XML refuses."""
    return html.escape(printable(text), quote=True)


def in_figure(text: str) -> str:
    """A label of matplotlib, which takes what stands between two dollar signs for a formula."""
    return printable(" ".join(text.split())).replace("$", r"\$")
