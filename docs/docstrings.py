"""From the docstrings of sslkit, plain text with a little Markdown, to reStructuredText; and from
signatures to what Sphinx reads."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BACKTICKS = re.compile(r"(`[^`]*`)")


def to_restructured_text(lines: list[str]) -> list[str]:
    """Tables and indented examples become literal blocks, lists get the blank line that they need,
    and characters that only reStructuredText knows are escaped."""
    result: list[str] = []
    in_list = in_block = False
    for paragraph in _paragraphs(lines):
        first = paragraph[0]
        continues = in_block
        in_block = first.lstrip().startswith("|") or (first.startswith("    ") and not in_list)
        if in_block:
            result += [] if continues else [".. code-block:: text", ""]
            result += [*(f"   {line}" for line in paragraph), ""]
            continue
        in_list = first.startswith(("- ", "  "))
        for line in paragraph:
            if line.startswith("- ") and not in_list:
                result.append("")
                in_list = True
            result.append(_escaped(line))
        result.append("")
    return result


def readable_signature(signature: str) -> str:
    """A signature that Sphinx can read: of one with a default of a dataclass that is made anew
    each time, which autodoc writes as `<factory>`, it would show the raw text."""
    return signature.replace("<factory>", "...")


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _escaped(line: str) -> str:
    parts = _BACKTICKS.split(line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([|*])", r"\\\1", part) for part in parts
    )
