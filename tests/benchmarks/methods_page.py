"""The page of the methods under one budget, its CSV and its figure, from one JSON file a method."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOLS = {"kNN": "eval/knn/top1", "linear": "eval/linear/top1"}
_AGAINST = ("minus_pixels", "minus_untrained")
_COSTS = ("images_seen", "training_seconds", "peak_memory_mb")
_BOUNDS = ("mean", "low", "high")
_COLUMNS = (
    *("method", "recipe", "metric", "n", *_BOUNDS),
    *(f"{name}_{bound}" for name in _AGAINST for bound in _BOUNDS),
    *_COSTS,
)
_HEAD = "| method | mean | minus pixels | minus untrained | images seen |\n|---|---|---|---|---|"


def write_page(results: Path) -> Path:
    """Writes `methods-one-budget.md` beside the folder of results, its figure and a CSV."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))
    ]
    if not found:
        raise SystemExit(f"no results in {results}: measure first")
    pages = results.parents[1]
    with (results / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(_csv_rows(found))
    figure = pages / "figures" / "methods-one-budget.svg"
    figure.parent.mkdir(exist_ok=True)
    curves(found).savefig(figure, metadata={"Date": None})
    page = pages / "methods-one-budget.md"
    page.write_text("\n".join(_page(found)) + "\n", encoding="utf-8")
    return page


def _page(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    budget, machine = found[0]["budget"], found[0]["machine"]
    yield "---\norphan: true\n---\n"
    yield "# Every method under one budget, CIFAR-10\n"
    yield (
        f"Each method trains for {budget['final_seconds']:.0f} seconds on one thread of one core, "
        f"{budget['seeds']} seeds. Its learning rate and one more setting were chosen by kNN on "
        f"{100 * budget['selection_fraction']:.0f} % of the training images, in runs of "
        f"{budget['search_seconds']:.0f} seconds; the test set was looked at once, by what was "
        "chosen. So the table says what a method gives for a few minutes of a laptop, not what it "
        "gives in the end. Intervals: 95 %, Student's t over seeds.\n"
    )
    hardware, packages = machine["hardware"], machine["packages"]
    yield f"{hardware['cpu']}; torch {packages['torch']}, timm {packages['timm']}.\n"
    for protocol, metric in PROTOCOLS.items():
        yield f"## {protocol}, top-1 in %\n"
        yield _HEAD
        scored = [(row, each) for each in found if (row := _row(each, metric)) is not None]
        for row, each in sorted(scored, key=lambda pair: -pair[0]["mean"]):
            cells = (
                _interval(row),
                *(_signed(row[f"minus_{name}"]) for name in ("pixels", "untrained")),
            )
            yield f"| `{each['method']}` | {' | '.join(cells)} | {each['costs']['images_seen']:,} |"
        yield ""
        yield from _not_above(scored)
    yield "## What was searched\n"
    yield "| method | recipe | tried (kNN on kept images, %) | chosen |\n|---|---|---|---|"
    for each in found:
        tried = "; ".join(f"{_words(t['settings'])}: {100 * t['top1']:.1f}" for t in each["search"])
        yield f"| `{each['method']}` | `{each['recipe']}` | {tried} | {_words(each['chosen'])} |"
    yield ""
    yield "## Curves\n"
    yield "![Accuracy of the online probe against training time](figures/methods-one-budget.svg)\n"
    yield "Numbers: [CSV](results/methods/table.csv); the JSON files beside it hold all runs."


def _not_above(scored: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterable[str]:
    """Names the methods that are not above their untrained backbone."""
    below = [
        f"`{each['method']}`"
        for row, each in scored
        if row["minus_untrained"]["low"] is None or row["minus_untrained"]["low"] <= 0.0
    ]
    if below:
        yield f"Not above their untrained backbone, with this budget: {', '.join(below)}.\n"
    else:
        yield "The interval against the untrained backbone is above zero for every method.\n"


def _row(each: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
    return next((row for row in each["scores"] if row["metric"] == metric), None)


def _interval(value: Mapping[str, Any], form: str = ".1f") -> str:
    mean, low, high = (value[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{100 * mean:{form}}"
    return f"{100 * mean:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def _signed(value: Mapping[str, Any]) -> str:
    return _interval(value, "+.1f")


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in settings.items())


def _csv_rows(found: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for each in found:
        for row in each["scores"]:
            against = {
                f"{name}_{bound}": (row.get(name) or {}).get(bound)
                for name in _AGAINST
                for bound in _BOUNDS
            }
            yield {
                "method": each["method"],
                "recipe": each["recipe"],
                **{name: row[name] for name in ("metric", "n", *_BOUNDS)},
                **against,
                **{name: each["costs"][name] for name in _COSTS},
            }


def curves(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Top-1 of the online probe against seconds of training, the mean over seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, each in enumerate(found):
        seconds = each["costs"]["training_seconds"]
        runs = [dict(map(tuple, curve)) for curve in each["curves"] if curve]
        if not runs:
            continue
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        last = max(max(run) for run in runs)
        axes.plot(
            [seconds * step / last for step in steps],
            [100 * sum(run[step] for run in runs) / len(runs) for step in steps],
            label=each["method"], color=colours[number % len(colours)],
        )  # fmt: skip
    axes.set_xlabel("training, seconds of one core")
    axes.set_ylabel("online probe, top-1 in %")
    figure.legend(loc="outside right center", fontsize="small")
    return figure
