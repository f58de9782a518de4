"""The Markdown pages of the repository and the code blocks in them.

A block is marked by an HTML comment on the line before it, which no reader sees. Every bash, Python
and TOML block has a mark, so that none goes untested:

    <!-- run -->                       execute it (bash or python), page by page, top to bottom
    <!-- run, given: finished run -->  the same, with a state of `page_states.py` in the folder
    <!-- run, needs: package -->       the same, where this package is installed
    <!-- run, and: -o a=1 -o b=2 -->   the same, with more words at its end, which make it small
    <!-- parse: why it is not run -->  bash: a shell reads it, and its programs would take
                                       options, recipes and fields (`page_commands.py`);
                                       python: every name in it exists (`page_python.py`)
    <!-- file: path/name.py -->        write it to a file, in the folder where the page is executed
    <!-- append: path/name.py -->      append it to that file, after two empty lines
    <!-- part of: path/name.py -->     lines of that file
    <!-- output -->                    text that the block above prints, up to its numbers; `...`
                                       stands for anything
    <!-- output of: COMMAND -->        text that a command prints which the page does not show
    <!-- cell -->                      a cell of the notebook (`test_notebook.py`)
    <!-- recipe: complete -->          a recipe without plugins; marks join: `, file: x.yaml`
    <!-- same as: recipes/x.yaml -->   equal to a file of the repository

YAML without a mark is a piece of a recipe: it has to fit into the quickstart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"^```\{(?:toctree|eval-rst)\}.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """A page as a path in the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def pages() -> list[Path]:
    """All hand-written pages."""
    found = [page for page in DOCS.rglob("*.md") if not {"_generated", "_build"} & set(page.parts)]
    top = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md", "plugins/README.md")
    found += [REPOSITORY / name for name in top]
    for packages in ("plugins", "tests"):
        found += (REPOSITORY / packages).glob("*/README.md")
    return sorted(found)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order. Directives (`{toctree}`) are none."""
    return list(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        marks = {}
        for part in _split(match["mark"] or ""):
            key, _, value = part.partition(": ")
            marks[key] = value
        marks.pop("", None)
        yield Block(page, line, match["language"], match["text"], marks)


def _split(mark: str) -> list[str]:
    """The parts of a mark; what explains or is of a command takes all that follows it."""
    if mark.startswith(("parse: ", "output of: ")):
        return [mark]
    parts, more, words = mark.partition(", and: ")
    return [*parts.split(", "), *([f"and: {words}"] if more else [])]


def unread_fences(page: Path) -> list[str]:
    """Lines that open or close code which `blocks` does not see: without a language, indented, or
    in another directive."""
    rest = _DIRECTIVE.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return [line for line in rest.splitlines() if re.match(r"\s*(```|~~~)", line)]


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in pages() for block in blocks(page)]
