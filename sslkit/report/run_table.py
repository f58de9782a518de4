"""What `sslkit runs list`, `best` and `clean` print."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sslkit.errors import printable
from sslkit.evaluation.scores import SUBJECTS, is_score, is_share

from .console import print_line, print_table
from .terminal import display_path

_MOST_METRICS = 3
_LONGEST = 40
"""Characters of a method or a metric: those of a stranger may fill screens."""
_BETWEEN = 3
"""Columns between two cells of a table."""
_FIRST_TO_GO = ("method", "age")
"""What a narrow terminal does not show, after all metrics but the first; names stay whole."""


def print_runs(runs: Sequence[Mapping[str, Any]], sorted_by: str) -> None:
    """A row for each run, then why those that are damaged are. runs: of `run_to_json`."""
    if not runs:
        print_line("no runs")
        return
    metrics = _columns(runs, sorted_by)
    heads = ["run", "state", "age", "step", "method", *map(_head, metrics)]
    rows = [_row(run, metrics) for run in runs]
    keep, left_out = _fitting(heads, rows, metrics)
    print_table(
        [heads[at] for at in keep],
        [[row[at] for at in keep] for row in rows],
        title="Scores in %, the last of each run" if any(map(in_percent, metrics)) else None,
    )
    if left_out:
        print_line(f"too narrow for: {', '.join(left_out)}; a wider terminal or --json shows them")
    for run in runs:
        if run["state"] == "damaged":
            print_line(f"damaged: {display_path(Path(run['path']))}: {run['why']}")
    stale = sum(run["state"] == "stale" for run in runs)
    if stale:
        print_line(f"stale: {stale} ended without a word; `sslkit runs show RUN` says how to go on")


def print_best(found: Mapping[str, Any]) -> None:
    """The best run, and how it was chosen. found: `BestRun.to_json`."""
    run, metric = found["run"], found["metric"]
    print_line(f"{display_path(Path(run['path']))}")
    others = f", as have {found['ties']} that began later" if found["ties"] else ""
    print_line(
        f"{metric} {shown(metric, found['value'])}: the {found['direction']} of "
        f"{found['among']} finished runs{others}"
    )
    if metric.startswith("eval/") and found["among"] > 1 and "selection" not in metric:
        print_line(
            "note: chosen by what it is measured on, its score flatters it; for a fair one repeat "
            "it with other seeds (sslkit compare --seeds)"
        )


def print_removals(found: Mapping[str, Any]) -> None:
    """What was removed, or would be, and what stays. found: `Cleaning.to_json`."""
    for skipped in found["kept"]:
        print_line(f"stays: {display_path(Path(skipped['path']))}: {skipped['why']}")
    rows = [
        (display_path(Path(each["path"])), each["why"], size(each["bytes"]))
        for each in found["removals"]
    ]
    if not rows:
        print_line("nothing to remove")
        return
    print_table(("removed" if found["done"] else "would be removed", "because", "size"), rows)
    total = size(sum(each["bytes"] for each in found["removals"]))
    if found["done"]:
        print_line(f"removed {total}")
    else:
        print_line(f"{total} in all; nothing was removed: add --yes to remove it")


def shown(metric: str, value: float) -> str:
    """A value as tables show it."""
    return f"{100 * value:.1f} %" if in_percent(metric) else f"{value:.6g}"


def in_percent(metric: str) -> bool:
    """Whether the metric with this full key is shown in percent."""
    return is_share(metric.rpartition("/")[2])


def age(seconds: float) -> str:
    """How long ago, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def age_of(moment: str | None) -> str:
    """How long ago a moment of a JSON document was."""
    if moment is None:
        return "-"
    then = datetime.fromisoformat(moment)
    return age((datetime.now(UTC) - then).total_seconds())


def size(number: int) -> str:
    """Bytes in words."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= length:
            return f"{number / length:.1f} {unit}"
    return f"{number} B"


def main_scores(metrics: Mapping[str, float]) -> list[str]:
    """The keys of the scores of the trained encoder, `eval/<evaluator>/<metric>`."""
    return [key for key in metrics if _is_main(key)]


def _is_main(key: str) -> bool:
    place, _, rest = key.partition("/")
    evaluator, _, metric = rest.partition("/")
    others = tuple(f"_{subject}" for subject in SUBJECTS)
    return place == "eval" and evaluator != "" and is_score(metric) and not metric.endswith(others)


def _columns(runs: Sequence[Mapping[str, Any]], sorted_by: str) -> list[str]:
    """The metric that runs are sorted by, and the scores that most of them have."""
    known = Counter(key for run in runs for key in main_scores(run["metrics"]))
    known.pop(sorted_by, None)
    chosen = [key for key, _ in known.most_common(_MOST_METRICS)]
    asked = any(sorted_by in run["metrics"] for run in runs)
    return [sorted_by, *chosen][:_MOST_METRICS] if asked else chosen


def _head(metric: str) -> str:
    return metric.removeprefix("eval/").replace("/", " ")[:_LONGEST]


def _row(run: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    total = "" if run["total_steps"] is None else f"/{run['total_steps']}"
    values = [run["metrics"].get(metric) for metric in metrics]
    return [
        run["name"],
        run["state"],
        age_of(run["began"]),
        f"{run['step']}{total}",
        str(run["method"] or "-")[:_LONGEST],
        *(
            "-" if value is None else shown(metric, value).removesuffix(" %")
            for metric, value in zip(metrics, values, strict=True)
        ),
    ]


def _fitting(
    heads: Sequence[str], rows: Sequence[Sequence[str]], metrics: Sequence[str]
) -> tuple[list[int], list[str]]:
    """The columns that fit beside each other, and the heads of those that do not."""
    keep = list(range(len(heads)))
    if not sys.stdout.isatty():
        return keep, []
    widths = [max(len(printable(row[at])) for row in (heads, *rows)) for at in keep]
    extra = [len(heads) - 1 - place for place in range(max(len(metrics) - 1, 0))]
    order = [*extra, *(heads.index(name) for name in _FIRST_TO_GO)]
    left_out = []
    for at in order:
        if sum(widths[each] + _BETWEEN for each in keep) - _BETWEEN <= _width():
            break
        keep.remove(at)
        left_out.append(heads[at])
    return keep, left_out


def _width() -> int:
    return shutil.get_terminal_size().columns
