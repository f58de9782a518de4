"""The catalogue of methods: a row for each one installed that has a page, from the page itself, its
class and its recipes; and for each loss that has one."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sslkit.host.plugins import load_plugins
from sslkit.recipe import shipped_recipes

METHODS = Path(__file__).parent / "methods"
TABLE = Path(__file__).parent / "benchmarks" / "results" / "methods" / "table.csv"
"""Of all methods under one budget; there once the table is published."""
NOT_YET = "not yet measured"
OPENING = re.compile(
    r"^`(method|loss): \{name: (\w+)\}`(.*?), +(?:in|`pip)", re.MULTILINE | re.DOTALL
)
PAPER = re.compile(r"\[([^\]]*\d{4})\]\((https://\S+?)\)")
"""A reference by authors and year, as the opening of a page gives it."""
DIFFERENCES = re.compile(r"^#+ (.*\bdiffers?\b.*)$", re.MULTILINE)

_START = """# Catalogue of methods

Every method that is built in or a package of this repository, and losses that make another method
of one. *Measured* is what a recipe of the
page reached with sslkit, kNN or linear accuracy in % on the data that the recipe names; what was
published stands beside it on the page.
"""
_SHORT = """*In 3 minutes* is the kNN accuracy on CIFAR-10, in %, after three minutes of a core, and
in brackets how far that is above the same network untrained, the mean of a few seeds. Only methods
with the same network compare; intervals, and what each method was given, labels among it, stand
under [one budget for all](../../benchmarks/methods-one-budget.md).
"""


@dataclass(frozen=True)
class Page:
    """The page of one method, or of several that share one; or of a loss."""

    path: Path
    kind: str
    """"method" or "loss"."""
    names: tuple[str, ...]
    text: str

    @property
    def papers(self) -> dict[str, str]:
        """arXiv number, or authors and year -> the link that the opening gives."""
        opening = self.text.partition("\n## ")[0]
        found = {}
        for words, address in PAPER.findall(opening):
            _, arxiv, number = address.partition("arxiv.org/abs/")
            found[number if arxiv else words] = f"[{words}]({address})"
        return found

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
    before it names the package; or `loss: {name: ...}`."""
    found = []
    for path in sorted(METHODS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        opening = OPENING.search(text)
        if opening:
            kind, name, rest = opening.groups()
            found.append(Page(path, kind, (name, *re.findall(r"`(\w+)`", rest)), text))
    return found


def catalogue_page() -> str:
    """The catalogue, for `docs/reference/_generated`."""
    registry = load_plugins().registry
    recipes, short = recipes_by_page(), short_runs()
    heads = ["method", "paper", "package", "measured", "differences"]
    if short:
        heads.insert(-1, "in 3 minutes")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for page in method_pages():
        packages = {entry.name: entry.distribution for entry in registry.entries(page.kind)}
        for name in page.names:
            if name not in packages:
                continue  # its package is not installed
            source = registry.resolve(page.kind, name).cls.__doc__ or ""
            cells = [
                f"[`{name}`](../../methods/{page.path.name})",
                ", ".join(link for paper, link in page.papers.items() if paper in source),
                packages[name],
                page.measured(recipes.get(name, ())),
                *([short.get(name, NOT_YET)] if short else []),
                page.differences,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([_START, *([_SHORT] if short else []), *lines, ""])


def short_runs() -> dict[str, str]:
    """Method, or loss -> what it reached under the budget that all share; nothing while the table
    is not published."""
    if not TABLE.exists():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["metric"] == "eval/knn/top1"]
    return {row["method"]: _short_run(row) for row in found}


def _short_run(row: Mapping[str, str]) -> str:
    mean, more = (100 * float(row[name]) for name in ("mean", "minus_untrained_mean"))
    network = "ViT" if row["backbone"].startswith("vit") else "ResNet"
    low = row["minus_untrained_low"]  # empty with one seed
    doubt = "" if low and float(low) > 0.0 else ": not shown to be above it"
    return f"{network} {mean:.1f} ({more:+.1f}{doubt})"


@cache
def recipes_by_page() -> dict[str, list[str]]:
    """Method, or loss with a page, -> the names of the recipes that are shipped for it. A recipe
    whose loss has a page belongs to that one."""
    losses = {name for page in method_pages() if page.kind == "loss" for name in page.names}
    found: dict[str, list[str]] = {}
    for name, path in shipped_recipes().items():
        method: Any = yaml.safe_load(path.read_text(encoding="utf-8"))["method"]
        loss = method.get("loss", {}).get("name")
        found.setdefault(loss if loss in losses else method["name"], []).append(name)
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
