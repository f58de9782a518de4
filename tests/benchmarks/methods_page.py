"""The page of the methods under one budget, its CSV and its figure, from one JSON file a method."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROTOCOLS = {"kNN": "eval/knn/top1", "linear": "eval/linear/top1"}
_HALVES = {"Convolutional networks": False, "Vision transformers": True}
_AGAINST = ("minus_pixels", "minus_untrained")
_BOUNDS = ("mean", "low", "high")
_COLUMNS = (
    *("method", "recipe", "backbone", "metric", "n", *_BOUNDS),
    *(f"{name}_{bound}" for name in _AGAINST for bound in _BOUNDS),
    *("steps", "images_seen", "images_per_cpu_second"),
)

Result = Mapping[str, Any]


def write_page(results: Path, notes: Mapping[str, str]) -> Path:
    """Writes `methods-one-budget.md` beside the folder of results, its figure and a CSV.

    notes: method -> what a reader must know of its numbers."""
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
    page.write_text("\n".join(_page(found, notes)) + "\n", encoding="utf-8")
    return page


def _page(found: Sequence[Result], notes: Mapping[str, str]) -> Iterable[str]:
    yield "---\norphan: true\n---\n"
    yield "# Every method under one budget, CIFAR-10\n"
    yield from _conditions(found[0])
    for title, half in _halves(found):
        yield f"## {title}\n"
        yield from _scores(half)
        yield from _not_above(half)
    if notes:
        yield "## Notes\n"
        yield from (f"- `{name}`: {note}" for name, note in notes.items())
        yield ""
    yield from _pretext(found)
    yield "## Cost\n"
    yield "| method | images a CPU second | steps | images seen |\n|---|---|---|---|"
    for each in found:
        steps, images = _steps(each), each["costs"]["images_seen"]
        speed = each["images_per_cpu_second"]
        yield f"| `{each['method']}` | {speed:,.0f} | {steps:,} | {images:,} |"
    yield ""
    yield "## What was searched\n"
    yield "| method | recipe | tried (kNN on kept images, %) | chosen |\n|---|---|---|---|"
    for each in found:
        tried = "; ".join(f"{_words(t['settings'])}: {100 * t['top1']:.1f}" for t in each["search"])
        yield f"| `{each['method']}` | `{each['recipe']}` | {tried} | {_words(each['chosen'])} |"
    yield ""
    yield "## Curves\n"
    yield "![Accuracy of the online probe against training time](figures/methods-one-budget.svg)\n"
    yield "Numbers: [CSV](results/methods/table.csv); the JSON files beside it hold all runs."


def _conditions(first: Result) -> Iterable[str]:
    budget, pixels = first["budget"], first["pixels"]
    yield (
        f"Each method trains for {budget['final_seconds']:.0f} seconds of CPU time on one thread, "
        f"{budget['seeds']} seeds: so many steps as fit at its speed, which is what more steps add "
        "to the CPU time of a run, the first tenth of them warm-up. Its learning rate and one more "
        "setting were chosen by kNN on "
        f"{100 * budget['selection_fraction']:.0f} % of the training images, kept from training, "
        f"in runs of {budget['search_seconds']:.0f} seconds with another seed; the test set was "
        "looked at once, by what was chosen. So the table says what a method gives for a few "
        "minutes of a laptop, not what it gives in the end: it rewards fast starts.\n"
    )
    reached = " and ".join(
        f"{100 * pixels[metric]:.1f} % ({name})" for name, metric in PROTOCOLS.items()
    )
    yield (
        "In brackets: 95 % intervals over seeds, Student's t; those of differences are paired by "
        "seed. Untrained: the same network with the same initial weights, before the first step. "
        f"Pixels, mean-centred, reach {reached}; they are the same for every run and were measured "
        "once. All 50,000 training and 10,000 test images; kNN with k = 200, temperature 0.1.\n"
    )
    hardware, packages = first["machine"]["hardware"], first["machine"]["packages"]
    yield f"{hardware['cpu']}; torch {packages['torch']}, timm {packages['timm']}.\n"


def _halves(found: Sequence[Result]) -> Iterable[tuple[str, Sequence[Result]]]:
    for title, is_vit in _HALVES.items():
        half = [each for each in found if each["backbone"].startswith("vit") == is_vit]
        if half:
            yield title, half


def _scores(half: Sequence[Result]) -> Iterable[str]:
    names = [f"{name} | minus untrained | minus pixels" for name in PROTOCOLS]
    yield f"| method | backbone | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * 3 * len(PROTOCOLS)}"
    first = next(iter(PROTOCOLS.values()))
    for each in sorted(half, key=lambda each: -_row(each, first)["mean"]):
        rows = [_row(each, metric) for metric in PROTOCOLS.values()]
        cells = [
            cell
            for row in rows
            for cell in (
                _interval(row),
                *(_interval(row[name], "+.1f") for name in reversed(_AGAINST)),
            )
        ]
        yield f"| `{each['method']}` | `{each['backbone']}` | {' | '.join(cells)} |"
    yield ""


def _not_above(half: Sequence[Result]) -> Iterable[str]:
    """Names the methods that are not above their untrained backbone."""
    for name, metric in PROTOCOLS.items():
        below = [
            f"`{each['method']}`"
            for each in half
            if (low := _row(each, metric)["minus_untrained"]["low"]) is None or low <= 0.0
        ]
        if below:
            yield f"{name}: not shown to be above the untrained network: {', '.join(below)}.\n"
        else:
            yield f"{name}: every interval against the untrained network is above zero.\n"


def _pretext(found: Sequence[Result]) -> Iterable[str]:
    tasks = {each["method"]: each["pretext_top1"] for each in found if each.get("pretext_top1")}
    if tasks:
        yield "## Pretext tasks\n"
        yield "Accuracy of the task itself at the end, in training, by seed:\n"
        for name, accuracies in tasks.items():
            yield f"- `{name}`: {', '.join(f'{100 * value:.1f}' for value in accuracies)} %"
        yield ""


def _row(each: Result, metric: str) -> Result:
    """The scores of one metric, with the pixels taken off."""
    (row,) = (row for row in each["scores"] if row["metric"] == metric)
    pixels = each["pixels"][metric]
    taken = {bound: None if row[bound] is None else row[bound] - pixels for bound in _BOUNDS}
    return {**row, "minus_pixels": taken}


def _steps(each: Result) -> int:
    return max(step for curve in each["curves"] for step, _ in curve)


def _interval(value: Result, form: str = ".1f") -> str:
    mean, low, high = (value[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{100 * mean:{form}}"
    return f"{100 * mean:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in settings.items())


def _csv_rows(found: Iterable[Result]) -> Iterable[dict[str, Any]]:
    for each in found:
        for metric in PROTOCOLS.values():
            row = _row(each, metric)
            yield {
                **{name: each[name] for name in ("method", "recipe", "backbone")},
                **{name: row[name] for name in ("metric", "n", *_BOUNDS)},
                **{f"{name}_{bound}": row[name][bound] for name in _AGAINST for bound in _BOUNDS},
                "steps": _steps(each),
                "images_seen": each["costs"]["images_seen"],
                "images_per_cpu_second": each["images_per_cpu_second"],
            }


def curves(found: Sequence[Result]) -> Figure:
    """Top-1 of the online probe against CPU seconds of training, the mean over seeds; one panel a
    half of the table."""
    from matplotlib.figure import Figure

    halves = list(_halves(found))
    figure = Figure(figsize=(9, 4.5 * len(halves)), layout="constrained")
    for axes, (title, half) in zip(
        figure.subplots(len(halves), squeeze=False)[:, 0], halves, strict=True
    ):
        _draw(axes, half)
        axes.set_title(title)
        axes.set_xlabel("CPU seconds of training")
        axes.set_ylabel("online probe, top-1 in %")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return figure


def _draw(axes: Axes, half: Sequence[Result]) -> None:
    import matplotlib

    colours = cycle(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    for number, (each, colour) in enumerate(zip(half, colours, strict=False)):
        runs = [dict(map(tuple, curve)) for curve in each["curves"]]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        seconds = [step * each["budget"]["final_seconds"] / steps[-1] for step in steps]
        axes.plot(
            seconds,
            [100 * sum(run[step] for run in runs) / len(runs) for step in steps],
            label=each["method"], color=colour, linestyle="--" if number >= 10 else "-",
        )  # fmt: skip
