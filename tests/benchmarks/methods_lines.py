"""What each method reached in the table, as a paragraph on the page of the method."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .methods_csv import PROTOCOLS, in_percent, scores_of

BEGIN = "[Under one budget for all](../benchmarks/methods-one-budget.md)"
_RECIPES = re.compile(r"^## \w+ recipes\n.*?\n\|.*?\n(?!\|)", re.MULTILINE | re.DOTALL)
"""From the heading to the end of the table of recipes."""
_PARAGRAPH = re.compile(rf"^\n?{re.escape(BEGIN)}.*?\n(?=\n|\Z)", re.MULTILINE | re.DOTALL)

Result = Mapping[str, Any]


def write_paragraphs(halves: Mapping[str, Sequence[Result]], pages: Path) -> None:
    """Puts a paragraph, or what it says now, behind the table of recipes of each method's page."""
    by_page: dict[Path, list[Result]] = {}
    for half in halves.values():
        for each in half:
            by_page.setdefault(_page_of(each["method"], pages), []).append(each)
    for path, arms in by_page.items():
        text = _PARAGRAPH.sub("", path.read_text(encoding="utf-8"), count=1)
        recipes = _RECIPES.search(text)
        if recipes is None:
            raise SystemExit(f"{path}: no section of recipes with a table")
        before, behind = text[: recipes.end()], text[recipes.end() :]
        said = "\n".join(_paragraph(arms))
        path.write_text(f"{before}\n{said}\n{behind}", encoding="utf-8")


def _page_of(method: str, pages: Path) -> Path:
    """The page whose opening names a method or loss; that of a vision transformer with a method of
    the other half is the method's."""
    name = method.removesuffix("_vit")
    for path in sorted(pages.glob("*.md")):
        opening = path.read_text(encoding="utf-8").partition("\n## ")[0]
        if f"`{name}`" in opening or f"{{name: {name}}}" in opening:
            return path
    raise SystemExit(f"{pages}: no page names {name}")


def _paragraph(arms: Sequence[Result]) -> Iterable[str]:
    seconds = arms[0]["budget"]["final_seconds"]
    seeds = arms[0]["budget"]["seeds"]
    yield f"{BEGIN}, {seconds:.0f} seconds of a core on CIFAR-10, top-1 in %, n = {seeds} seeds:"
    yield from (f"`{each['method']}` ({_network(each)}): {_scores(each)}." for each in arms)


def _network(each: Result) -> str:
    return "a small ViT" if each["backbone"].startswith("vit") else f"`{each['backbone']}`"


def _scores(each: Result) -> str:
    rows = {name: scores_of(each, metric) for name, metric in PROTOCOLS.items()}
    return "; ".join(
        f"{name} {in_percent(row)}, untrained {100 * row['untrained']:.1f}"
        for name, row in rows.items()
    )
