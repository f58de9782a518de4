"""A page with tables and plots from the JSON of one or several runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .plots import memory_figure, micro_batch_figure, ratio_figure, share_figure
from .results import Group, read_results
from .tables import group_table

_ORDER = (
    "ceilings", "steps", "augmentation", "losses", "memory", "micro-batches", "decoding",
    "overhead", "profile", "checks", "runs",
)  # fmt: skip
_TITLES = {
    "ceilings": "Ceilings",
    "steps": "Whole steps",
    "augmentation": "Augmentation",
    "losses": "Losses",
    "memory": "Memory of the loss",
    "micro-batches": "Large batches in parts",
    "decoding": "Decoding",
    "overhead": "The loop itself",
    "profile": "Where the time goes",
    "checks": "Checks",
    "runs": "Whole runs",
}

_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"


def write_report(files: Sequence[Path], folder: Path) -> list[Path]:
    """Writes a page for each file, `<name>.md`, with its figures; returns what was written.

    Raises ValueError for a file that is no result."""
    written = []
    for path in files:
        document, groups = read_results(path)
        written += _write_page(path.stem, document, groups, folder)
    _list_pages(folder)
    return written


def _list_pages(folder: Path) -> None:
    """Lists all pages of the folder in its `index.md`, between the marks, where it has them."""
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8") if index.exists() else ""
    if _BEGIN not in text or _END not in text:
        return
    pages = sorted(path for path in folder.glob("*.md") if path != index)
    titles = [path.read_text(encoding="utf-8").partition("# ")[2].splitlines()[0] for path in pages]
    links = "\n".join(
        f"- [{title}]({page.name})" for title, page in zip(titles, pages, strict=True)
    )
    before, _, rest = text.partition(_BEGIN)
    index.write_text(
        f"{before}{_BEGIN}\n{links}\n{_END}{rest.partition(_END)[2]}", encoding="utf-8"
    )


def _write_page(
    name: str, document: dict[str, Any], groups: list[Group], folder: Path
) -> list[Path]:
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    # Linked from the index, and in no table of contents: pages come and go with measurements.
    lines = [
        "---",
        "orphan: true",
        "---",
        "",
        f"# {_heading(document, groups)}",
        "",
        *_preamble(document),
    ]
    written: list[Path] = []
    for part in _ORDER:
        of_part = [group for group in groups if group.part == part]
        if not of_part:
            continue
        lines += [f"## {_TITLES[part]}", ""]
        for kind, figure in _figures(part, of_part):
            path = figures / f"{_slug(name)}-{part}-{kind}.svg"
            figure.savefig(path)
            path.write_text(_without_dates(path.read_text()), encoding="utf-8")
            written.append(path)
            lines += [f"![{_TITLES[part]}: {kind}](figures/{path.name})", ""]
        for group in of_part:
            lines += [group_table(group)]
    page = folder / f"{_slug(name)}.md"
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [page, *written]


def _figures(part: str, groups: list[Group]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    if any(group.reference is not None for group in groups) and part != "overhead":
        found.append(("ratios", ratio_figure(groups)))
    if any(group.ceiling is not None for group in groups):
        found.append(("ceiling", share_figure(groups)))
    if part in ("losses", "memory"):
        found.append(("memory", memory_figure(groups)))
    if part == "micro-batches":
        found.append(("memory", micro_batch_figure(groups)))
    return [(kind, figure) for kind, figure in found if figure is not None]


def _heading(document: dict[str, Any], groups: Sequence[Group]) -> str:
    hardware = document["machine"]["hardware"]
    device = ", ".join(hardware["gpus"]) or hardware["cpu"]
    parts = dict.fromkeys(group.part for group in groups)
    tables = {str(group.facts["table"]) for group in groups if "table" in group.facts}
    named = ", ".join([*parts, *(sorted(tables) if len(tables) == 1 else [])])
    return f"{device}, {document['began'][:10]}: {named}"


def _preamble(document: dict[str, Any]) -> list[str]:
    machine = document["machine"]
    hardware, git = machine["hardware"], machine["git"] or {"commit": "unknown", "dirty": False}
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"Command: `{' '.join(document['command'])}`", "",
        f"- {hardware['cpu']}, {hardware['cpu_threads_usable']} usable threads, "
        f"{document['threads']} used by torch; load average at the start "
        f"{machine['load_average'][0]}",
        f"- GPU: {', '.join(hardware['gpus']) or 'none'}",
        f"- commit {git['commit'][:12]}{' with uncommitted changes' if git['dirty'] else ''}",
        f"- Python {machine['python']}, {packages}",
        "",
        "Ratios are medians over n paired rounds; brackets hold the true median with at least 95 % "
        "(n >= 6; all values for fewer). [How to read them](index.md).",
        "",
    ]  # fmt: skip
    if document["tiny"]:
        lines += [
            "**Tiny sizes, taken to see that the command runs: the numbers say nothing.**",
            "",
        ]
    elif document["quick"]:
        lines += ["**Taken with `--quick`: a third of the rounds.**", ""]
    return lines


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _without_dates(svg: str) -> str:
    """The same picture gives the same file."""
    return re.sub(r"\s*<dc:date>.*?</dc:date>", "", svg)
