"""The tables of a comparison as text: for the terminal, for Markdown and for HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from sslkit.evaluation.statistics import Interval
from sslkit.report.console import print_line, print_table
from sslkit.report.final_results import in_percent
from sslkit.report.harmless import in_markdown, markdown_table
from sslkit.report.terminal import display_path

from .side_by_side import Comparison
from .svg import Picture

Table = tuple[str, list[str], list[list[str]]]
"""Title, column heads, rows."""
GROUP = "protocol"
"""The head of a first column whose values stand in several rows, one below the other."""


def text_tables(comparison: Comparison) -> list[Table]:
    """The main metrics of every evaluator, and what they cost."""
    return [_scores(comparison), _costs(comparison)]


def heading(comparison: Comparison) -> str:
    """What is compared, and how, in one line."""
    runs = sum(len(arm.records) for arm in comparison.arms)
    budget = f"{comparison.noun}s seen" if comparison.match == "epochs" else "training time"
    return (
        f"{_count(len(comparison.arms), 'arm')}, {_count(runs, 'run')}, matched by {budget}, "
        f"baseline {comparison.baseline}."
    )


def print_comparison(comparison: Comparison, page: Path) -> None:
    """Tables and notes on the terminal, and where the report is."""
    print_line(f"{comparison.name}: {heading(comparison)}")
    for title, heads, rows in text_tables(comparison):
        print_table(heads, rows, title=title)
    for note in comparison.notes:
        print_line(f"note: {note}")
    print_line(f"report: {display_path(page)}")


def markdown(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """The whole comparison as Markdown; the pictures are files in `figures` beside it."""
    return "\n".join(_markdown(comparison, pictures)) + "\n"


def _markdown(comparison: Comparison, pictures: Sequence[Picture]) -> Iterator[str]:
    yield in_markdown(f"# {comparison.name}")
    yield ""
    yield heading(comparison)
    for title, heads, rows in text_tables(comparison):
        yield ""
        yield f"{title}:"
        yield ""
        yield from markdown_table(heads, rows)
    if comparison.notes:
        yield ""
        yield from (in_markdown(f"- {note}") for note in comparison.notes)
    for picture in pictures:
        yield f"\n![{picture.name.replace('_', ' ')}](figures/{picture.name}.svg)"
        yield f"\n{picture.caption}"


def _scores(comparison: Comparison) -> Table:
    when = "last epoch" if comparison.time_limit is None else "at matched training time"
    title = f"Scores in %, {when}; mean over seeds [95 % interval over seeds, Student's t]"
    heads = [
        GROUP,
        "arm",
        "n",
        "score",
        "minus baseline",
        f"minus {comparison.raw}",
        "minus untrained",
    ]
    if comparison.time_limit is not None:
        heads[3:3] = ["epochs", "training"]
    rows = []
    for row in comparison.rows:
        cells = [
            _metric_name(row.metric),
            row.arm,
            str(len(row.values)),
            cell(row.metric, row.mean),
            "baseline"
            if row.arm == comparison.baseline
            else cell(row.metric, row.against_baseline, signed=True),
            cell(row.metric, row.against.get(comparison.raw), signed=True),
            cell(row.metric, row.against.get("untrained"), signed=True),
        ]
        if row.against_baseline is not None and row.pairs < len(row.values):
            cells[4] += f" ({row.pairs} of {len(row.values)} paired)"
        if comparison.time_limit is not None:
            cells[3:3] = [f"{row.epochs:.3g}", f"{row.seconds:,.1f} s"]
        rows.append(cells)
    return title, heads, rows


def _costs(comparison: Comparison) -> Table:
    nouns = f"{comparison.noun}s"
    heads = [
        "arm", "runs", f"{nouns} seen", "training", "evaluation", f"{nouns}/s", "peak memory",
    ]  # fmt: skip
    rows = [
        [
            cost.arm,
            str(cost.runs),
            f"{cost.images_seen:,}" if cost.images_seen else "-",
            f"{cost.training_seconds:,.1f} s" if cost.images_seen else "-",
            _number(cost.evaluation_seconds, "{:,.1f} s"),
            _number(cost.images_per_second, "{:,.0f}"),
            _number(cost.peak_memory_mb, "{:,.0f} MB"),
        ]
        for cost in comparison.costs
    ]
    return "Cost of a run, mean over seeds", heads, rows


def cell(metric: str, interval: Interval | None, *, signed: bool = False) -> str:
    """`46.7 [45.9, 47.5]`: in percent for scores, as it is for other metrics; without brackets
    where there is no interval, `-` for none."""
    if interval is None:
        return "-"
    scale, form = (100, ".1f") if in_percent(metric) else (1, ".4g")
    sign = "+z" if signed else ""  # z: what is rounded to zero has no minus
    mean, low, high = (f"{scale * value:{sign}{form}}" for value in interval)
    return mean if math.isnan(interval.low) else f"{mean} [{low}, {high}]"


def _metric_name(metric: str) -> str:
    name = metric.removeprefix("eval/").replace("/", " ")
    return name if in_percent(metric) else f"{name} (not in %)"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
