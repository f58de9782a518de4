"""Pictures of one run: learning curves, and accuracies beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sslkit.evaluation.results import ComparisonRow
from sslkit.evaluation.scores import SUBJECTS
from sslkit.runs.metrics_file import MetricLine

from .harmless import in_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"pixels": "#b0b7c3", "raw": "#b0b7c3", "untrained": "#e3a857", "trained": "#2f6db5"}
_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("train/loss",)),
    ("learning rate", ("train/lr",)),
    ("top-1 accuracy", ("train/online_probe/top1", "train/contrastive_top1", "eval/*/top1")),
    ("collapse: std", ("collapse/std",)),
)
_LEGEND_LINE = 0.16
"""Height of a line of a legend, inches."""


def draw_curves(lines: Sequence[MetricLine]) -> Figure:
    """Loss, learning rate, accuracies and collapse over epochs, as far as they were logged."""
    from matplotlib.figure import Figure

    steps_per_epoch = _steps_per_epoch(lines)
    panels = [(title, curves) for title, keys in _PANELS if (curves := _curves(lines, keys))]
    named = max((len(curves) for _, curves in panels), default=0)
    size = (4.2 * max(len(panels), 1), 3.2 + _LEGEND_LINE * named)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels, strict=False):
        for key, points in curves.items():
            x = [step / steps_per_epoch for step, _ in points]
            y = [value for _, value in points]
            axis.plot(x, y, marker="o" if len(points) < 30 else None, ms=3, lw=1.4,
                      label=in_figure(key))  # fmt: skip
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if title.startswith("top-1"):
            axis.set_ylim(0, 1)
        elif title.startswith("collapse"):
            axis.set_ylim(bottom=0)  # collapse is 0: a small wiggle must not look like a change
        if len(curves) > 1 or title.startswith(("top", "collapse")):
            # Below the panel: inside it would lie on a curve.
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    return figure


def draw_accuracies(rows: Sequence[ComparisonRow]) -> Figure:
    """A bar per evaluator and subject, in percent, with 95 % intervals where there are draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.5 * max(len(rows), 1), 3.2), layout="constrained")
    axis = figure.subplots()
    measured = [name for name in SUBJECTS if any(name in row.values for row in rows)]
    width = 0.8 / max(len(measured), 1)
    for column, subject in enumerate(measured):
        found = [(x, row.values[subject]) for x, row in enumerate(rows) if subject in row.values]
        places = [x + (column - (len(measured) - 1) / 2) * width for x, _ in found]
        heights = [100 * estimate.value for _, estimate in found]
        bars = axis.bar(places, heights, width * 0.92, label=subject, color=_COLOURS[subject])
        axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=7)
        for x, (_, estimate) in zip(places, found, strict=True):
            if estimate.low is not None and estimate.high is not None:
                axis.vlines(x, 100 * estimate.low, 100 * estimate.high, color="black", lw=1)
    names = [f"{in_figure(row.protocol)}\n{in_figure(row.metric)}" for row in rows]
    axis.set_xticks(range(len(rows)), names, fontsize=8)
    axis.set(ylabel="accuracy, %", ylim=(0, 110))
    if measured:
        figure.legend(fontsize=8, ncols=len(measured), loc="outside upper center", frameon=False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    return figure


def _curves(
    lines: Sequence[MetricLine], patterns: tuple[str, ...]
) -> dict[str, list[tuple[int, float]]]:
    from fnmatch import fnmatchcase

    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.metrics.items():
            if any(fnmatchcase(key, pattern) for pattern in patterns):
                curves.setdefault(key, []).append((line.step, value))
    return curves


def _steps_per_epoch(lines: Sequence[MetricLine]) -> float:
    for line in lines:
        if line.metrics.get("train/epoch"):
            return line.step / line.metrics["train/epoch"]
    return 1.0
