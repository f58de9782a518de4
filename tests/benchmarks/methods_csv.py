"""The scores of the table of methods, from its JSON files, and as a CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROTOCOLS = {"kNN": "eval/knn/top1", "linear": "eval/linear/top1"}
_BOUNDS = ("mean", "low", "high")
_AGAINST = ("minus_untrained", "minus_pixels")
_NAMES = ("method", "recipe", "backbone", "features", "precision")
_COSTS = ("images_seen", "training_seconds", "evaluation_seconds", "peak_memory_mb")
_COLUMNS = (
    *(*_NAMES, "metric", "n", *_BOUNDS, "values", "untrained", "pixels"),
    *(f"{name}_{bound}" for name in _AGAINST for bound in _BOUNDS),
    *("chosen", "steps", "images_per_cpu_second", "training_cpu_seconds", *_COSTS),
)

Result = Mapping[str, Any]


def scores_of(each: Result, metric: str) -> dict[str, Any]:
    """The scores of one metric, with `pixels`, `untrained` (the mean) and `minus_pixels`."""
    (row,) = (row for row in each["scores"] if row["metric"] == metric)
    pixels = each["pixels"][metric]
    return {
        **row,
        "pixels": pixels,
        "untrained": row["mean"] - row["minus_untrained"]["mean"],
        "minus_pixels": {
            bound: None if row[bound] is None else row[bound] - pixels for bound in _BOUNDS
        },
    }


def in_percent(value: Result, form: str = ".1f") -> str:
    """The mean, with its interval where it has one."""
    mean, low, high = (value[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{100 * mean:{form}}"
    return f"{100 * mean:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def steps_of(each: Result) -> int:
    """Steps of a run that was measured."""
    return max(step for curve in each["curves"] for step, _ in curve)


def write_csv(path: Path, found: Sequence[Result]) -> None:
    """A row for each method and protocol; several values of a cell are by seed, with spaces."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(_rows(found))


def _rows(found: Iterable[Result]) -> Iterable[dict[str, Any]]:
    for each in found:
        for metric in PROTOCOLS.values():
            row = scores_of(each, metric)
            yield {
                **{name: each[name] for name in (*_NAMES, "images_per_cpu_second")},
                **{name: row[name] for name in ("metric", "n", *_BOUNDS, "untrained", "pixels")},
                **{f"{name}_{bound}": row[name][bound] for name in _AGAINST for bound in _BOUNDS},
                **{name: each["costs"][name] for name in _COSTS},
                "values": _by_seed(row["values"].values()),
                "chosen": "; ".join(f"{path}={value}" for path, value in each["chosen"].items()),
                "steps": steps_of(each),
                "training_cpu_seconds": _by_seed(each["training_cpu_seconds"]),
            }


def _by_seed(values: Iterable[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.6g}" for value in values)
