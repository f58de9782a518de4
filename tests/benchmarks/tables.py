"""Results as tables in Markdown, which a terminal shows well enough."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .results import ArmResult, Group


def group_table(group: Group) -> str:
    """Title, one row an arm, and the facts."""
    lines = [f"### {group.title}", ""]
    if group.note:
        lines += [group.note, ""]
    if facts := _pairs(group.facts):
        lines += [facts, ""]
    lines += table(*(run_rows(group) if group.part == "runs" else arm_rows(group)))
    return "\n".join(lines) + "\n"


def arm_rows(group: Group) -> tuple[list[str], list[list[str]]]:
    """The header and a row for each arm; columns that hold nothing are left out."""
    columns = ["arm"]
    if group.reference is not None:
        columns.append(f"speed, {group.reference} = 1")
    if group.ceiling is not None:
        columns.append("share of the ceiling, %")
    columns += ["extra memory, MB", "first block / later ones", "n", "found"]
    rows = [_row(group, arm) for arm in group.arms]
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def run_rows(group: Group) -> tuple[list[str], list[list[str]]]:
    """Whole runs: minutes and accuracies of each seed, and their mean and standard deviation."""
    measured = [arm.facts.get("metrics", {}) for arm in group.arms]
    names = sorted({n for found in measured for n in found if n.endswith("/top1")})
    names += [n for n in ("perf/images_per_second",) if any(n in found for found in measured)]
    columns = ["arm", "minutes", *names]
    values = [
        [arm.seconds[0] / 60.0, *(found.get(name) for name in names)]
        for arm, found in zip(group.arms, measured, strict=True)
    ]
    rows = [
        [arm.name + (f" ({arm.unavailable})" if arm.unavailable else ""), *map(_number, row)]
        for arm, row in zip(group.arms, values, strict=True)
    ]
    complete = [row for row in values if None not in row]
    if len(complete) > 1:
        summary = [
            f"{_number(statistics.mean(column))} ± {statistics.stdev(column):.2g}"
            for column in zip(*complete, strict=True)
        ]
        rows.append([f"mean ± sd, n = {len(complete)}", *summary])
    return columns, rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _row(group: Group, arm: ArmResult) -> list[str]:
    row = [arm.name]
    if group.reference is not None:
        row.append(_ratio(group, arm, group.reference))
    if group.ceiling is not None:
        share = group.ratio(arm.name, group.ceiling)
        row.append("" if share is None else _percent(share.median, share.low, share.high))
    row.append("" if arm.extra_memory_mb is None else f"{arm.extra_memory_mb:,.1f}")
    row.append(_first(arm))
    row.append(str(len(arm.seconds)) if arm.seconds else "")
    row.append(f"not run: {arm.unavailable}" if arm.unavailable else _pairs(arm.facts))
    return row


def _ratio(group: Group, arm: ArmResult, reference: str) -> str:
    if arm.name == reference and arm.seconds:
        return "1"
    ratio = group.ratio(arm.name, reference)
    return "" if ratio is None else str(ratio)


def _percent(median: float, low: float, high: float) -> str:
    return f"{100 * median:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _first(arm: ArmResult) -> str:
    """What is paid once, as a multiple of a block; only where that is worth a word."""
    if arm.first_block_s is None or len(arm.seconds) < 2:
        return ""
    ratio = arm.first_block_s / statistics.median(arm.seconds)
    return f"{ratio:.0f}" if ratio >= 3.0 else ""


def _pairs(facts: dict[str, object]) -> str:
    shown = [f"{key} {_text(value)}" for key, value in facts.items() if value not in (None, [], {})]
    return "; ".join(shown)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_text(entry)}" for key, entry in value.items()) + ")"
    return str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, padded so that it reads in a terminal too."""
    cells = [list(columns), *[[cell.replace("|", "/") for cell in row] for row in rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line(cells[0]), rule, *(line(row) for row in cells[1:])]
