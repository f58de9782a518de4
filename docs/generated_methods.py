"""The catalogue of methods: a row for each one installed that has a page, from the page itself, its
class and its recipes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sslkit.host.plugins import load_plugins
from sslkit.recipe import shipped_recipes

METHODS = Path(__file__).parent / "methods"
NOT_YET = "not yet measured"
OPENING = re.compile(r"^`method: \{name: (\w+)\}`(.*?), +(?:in|`pip)", re.MULTILINE | re.DOTALL)
PAPER = re.compile(r"\[([^\]]*\d{4})\]\((https://arxiv\.org/abs/([\d.]+))\)")
"""A reference by authors and year, as the opening of a page gives it."""
DIFFERENCES = re.compile(r"^#+ (.*\bdiffer\b.*)$", re.MULTILINE)

_START = """# Catalogue of methods

Every method that is built in or a package of this repository. *Measured* is what a recipe of the
page reached with sslkit, kNN or linear accuracy in % on the data that the recipe names; what was
published stands beside it on the page.
"""


@dataclass(frozen=True)
class Page:
    """The page of one method, or of several that share one."""

    path: Path
    methods: tuple[str, ...]
    text: str

    @property
    def papers(self) -> dict[str, str]:
        """arXiv number -> the link that the opening gives."""
        opening = self.text.partition("\n## ")[0]
        found = PAPER.findall(opening)
        return {number: f"[{words}]({address})" for words, address, number in found}

    @property
    def differences(self) -> str:
        """A link to where the page says what differs from the paper."""
        found = DIFFERENCES.search(self.text)
        if found is None:
            return ""
        anchor = re.sub(r"[^\w\- ]", "", found.group(1).lower()).replace(" ", "-")
        return f"[what differs](../../methods/{self.path.name}#{anchor})"

    def measured(self, recipes: Collection[str]) -> str:
        """What these of its recipes reached, as far as they were measured."""
        table = rows(self.text, "recipe")
        reached = {name: table[name][-1] for name in recipes if name in table}
        found = [f"`{name}`: {what}" for name, what in reached.items() if what != NOT_YET]
        return "; ".join(found) or NOT_YET


def method_pages() -> list[Page]:
    """The pages of methods: those whose opening names `method: {name: ...}`, and further methods
    before it names the package."""
    found = []
    for path in sorted(METHODS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        opening = OPENING.search(text)
        if opening:
            others = re.findall(r"`(\w+)`", opening.group(2))
            found.append(Page(path, (opening.group(1), *others), text))
    return found


def catalogue_page() -> str:
    """The catalogue, for `docs/reference/_generated`."""
    registry = load_plugins().registry
    packages = {entry.name: entry.distribution for entry in registry.entries("method")}
    recipes = recipes_by_method()
    lines = ["| method | paper | package | measured | differences |", "|---|---|---|---|---|"]
    for page in method_pages():
        for method in page.methods:
            if method not in packages:
                continue  # its package is not installed
            source = registry.resolve("method", method).cls.__doc__ or ""
            cells = (
                f"[`{method}`](../../methods/{page.path.name})",
                ", ".join(link for number, link in page.papers.items() if number in source),
                packages[method],
                page.measured(recipes.get(method, ())),
                page.differences,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([_START, *lines, ""])


def recipes_by_method() -> dict[str, list[str]]:
    """Method -> the names of the recipes that are shipped for it."""
    found: dict[str, list[str]] = {}
    for name, path in shipped_recipes().items():
        recipe: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        found.setdefault(recipe["method"]["name"], []).append(name)
    return found


def rows(text: str, first: str) -> dict[str, list[str]]:
    """First cell, without backticks -> further cells, of the table whose first head this is."""
    return dict(_rows(text, first))


def _rows(text: str, first: str) -> Iterator[tuple[str, list[str]]]:
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not cells[0].startswith("-"):
            yield cells[0].strip("`"), cells[1:]
