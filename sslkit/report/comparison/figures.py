"""Curves and final values of a comparison as figures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from sslkit.evaluation.statistics import Interval, mean_interval
from sslkit.report.final_results import bounds, in_percent
from sslkit.report.harmless import in_figure

from .side_by_side import SUBJECTS, Arm, Comparison, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f6db5", "#d1662b", "#3c8d53", "#8a5aa8", "#b8860b", "#c0437a", "#4f9da6", "#6b6b6b")
"""By arm, in their order; from the ninth on they repeat with another line."""
_LINES = ("-", "--", ":", "-.")
_SUBJECT_LINES = {"pixels": ":", "raw": ":", "untrained": (0, (5, 2, 1, 2))}
_GREY = "#808895"
_LETTER, _HANDLE, _LINE = 0.085, 0.7, 0.2
"""Sizes in a legend, inches: a letter, the line beside a name with space, the height of a line."""
_MARGIN = 0.06
"""Margin of a panel of curves above and below the values, as a part of their range."""
_BAND_SEEDS = 3
"""With two, the interval is 12.7 standard errors to both sides and covers the panel."""
_UNITS = ((2 * 3600.0, 3600.0, "h"), (600.0, 60.0, "min"), (0.0, 1.0, "s"))
"""From how many seconds on, the length of the unit, its name."""


def draw_all(comparison: Comparison) -> dict[str, Figure]:
    """Name -> figure; a figure that has nothing to show is left out."""
    figures = {}
    metrics = [key for key in _curve_metrics(comparison) if _has_curve(comparison, key)]
    if metrics:
        unit, name = _time_unit(comparison)
        figures["learning_curves"] = _draw_curves(comparison, metrics, "epochs", lambda p: p.epoch)
        figures["accuracy_against_time"] = _draw_curves(
            comparison, metrics, f"training time, {name} (evaluation not counted)",
            lambda p: p.seconds / unit,
            None if comparison.time_limit is None else comparison.time_limit / unit,
        )  # fmt: skip
    if comparison.rows:
        figures["final_accuracies"] = draw_accuracies(comparison)
    return figures


def draw_accuracies(comparison: Comparison) -> Figure:
    """A panel per metric: each arm's mean with its 95 % interval, its seeds as small strokes, and
    lines where pixels and the untrained encoder are."""
    metrics = [
        key for key in comparison.metrics if any(row.metric == key for row in comparison.rows)
    ]
    figure, panels = _panels(len(metrics), 1.1 + 0.32 * len(comparison.arms))
    labels = [arm.label for arm in comparison.arms]
    for axis, metric in zip(panels, metrics, strict=True):
        scale, unit = _scale(metric)
        rows = [row for row in comparison.rows if row.metric == metric]
        for row in rows:
            place = labels.index(row.arm)
            colour = COLOURS[place % len(COLOURS)]
            axis.plot([scale * v for v in row.values], [place] * len(row.values), "|", ms=9,
                      color=colour, alpha=0.6)  # fmt: skip
            axis.plot([scale * row.mean.mean], [place], "o", ms=6, color=colour)
            if not math.isnan(row.mean.low):
                axis.hlines(
                    place, scale * row.mean.low, scale * row.mean.high, color=colour, lw=1.6
                )
        for subject in SUBJECTS:
            found = [row.mean.mean - row.against[subject].mean for row in rows
                     if subject in row.against]  # fmt: skip
            if found:
                axis.axvline(scale * fmean(found), color=_GREY, lw=1,
                             ls=_SUBJECT_LINES[subject], label=subject)  # fmt: skip
        axis.set(title=_title(metric), xlabel=unit, ylim=(len(labels) - 0.5, -0.5))
        axis.set_yticks(range(len(labels)), list(map(in_figure, labels)))
        axis.grid(axis="x", alpha=0.3)
    legend = {name: handle for axis in panels
              for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}  # fmt: skip
    _put_below(figure, legend)
    return figure


def _draw_curves(
    comparison: Comparison,
    metrics: Sequence[str],
    xlabel: str,
    x_of: Callable[[Point], float],
    limit: float | None = None,
) -> Figure:
    """A panel per metric: the mean of each arm over its seeds with its 95 % interval as a band
    from three seeds on, and each seed as a thin line. limit: where to draw a line across."""
    figure, panels = _panels(len(metrics), 3.2)
    handles: dict[str, Any] = {}
    for axis, metric in zip(panels, metrics, strict=True):
        scale, unit = _scale(metric)
        seen: list[float] = []
        for place, arm in enumerate(comparison.arms):
            colour = COLOURS[place % len(COLOURS)]
            for points in seed_curves(arm, metric, x_of):
                values = [scale * value for _, value in points]
                seen += values
                if len(arm.records) > 1:
                    axis.plot([at for at, _ in points], values, color=colour, lw=0.6, alpha=0.6)
            curve = mean_curve(arm, metric, x_of)
            if not curve:
                continue
            style = _LINES[place // len(COLOURS) % len(_LINES)]
            x = [at for at, _ in curve]
            (line,) = axis.plot(x, [scale * each.mean for _, each in curve], color=colour, ls=style,
                                marker="o" if len(x) < 30 else None, ms=3, lw=1.8)  # fmt: skip
            if len(arm.records) >= _BAND_SEEDS:
                axis.fill_between(x, [scale * each.low for _, each in curve],
                                  [scale * each.high for _, each in curve], color=colour,
                                  alpha=0.13, lw=0)  # fmt: skip
            handles.setdefault(arm.label, line)
        if limit is not None:
            axis.axvline(limit, color=_GREY, lw=1, ls="--")
        axis.set(title=_title(metric), xlabel=xlabel, ylabel=unit)
        # Bands do not count: of three seeds they are 2.5 deviations wide, and hide the curves.
        margin = _MARGIN * (max(seen) - min(seen)) or 1e-3 * scale
        axis.set_ylim(min(seen) - margin, max(seen) + margin)
        axis.grid(alpha=0.3)
    _put_below(figure, handles)
    return figure


def _put_below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """A legend below the panels, within the width of the figure, which grows by its lines."""
    if not handles:
        return
    width, height = figure.get_size_inches()
    letters = int((width - _HANDLE) / _LETTER)
    names = [fill(name, letters) for name in handles]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(len(names), int(width / (_HANDLE + _LETTER * longest))))
    lines = math.ceil(len(names) / columns) * max(name.count("\n") + 1 for name in names)
    figure.set_size_inches(width, height + _LINE * (lines - 1))
    literal = [name.replace("$", r"\$") for name in names]  # no formula
    figure.legend(list(handles.values()), literal, ncols=columns, loc="outside lower center",
                  frameon=False)  # fmt: skip


def mean_curve(
    arm: Arm, metric: str, x_of: Callable[[Point], float]
) -> list[tuple[float, Interval]]:
    """(x, mean with its 95 % interval by Student's t) over the seeds of an arm, at the steps that
    all of them have; x is the mean over seeds too, since seeds take different times."""
    at: dict[int, list[Point]] = defaultdict(list)
    for record in arm.records:
        for point in _by_step(record.curves.get(metric, ())):
            at[point.step].append(point)
    return [
        (
            fmean(x_of(point) for point in points),
            mean_interval([point.value for point in points], bounds=bounds(metric)),
        )
        for _, points in sorted(at.items())
        if len(points) == len(arm.records)
    ]


def seed_curves(
    arm: Arm, metric: str, x_of: Callable[[Point], float]
) -> list[list[tuple[float, float]]]:
    """(x, value) of each seed that was measured."""
    curves = (_by_step(record.curves.get(metric, ())) for record in arm.records)
    return [[(x_of(point), point.value) for point in curve] for curve in curves if curve]


def _by_step(points: Iterable[Point]) -> list[Point]:
    """The last value at each step: a step that was repeated after a kill is logged again."""
    return list({point.step: point for point in points}.values())


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, three in a row, each so many inches high."""
    from matplotlib.figure import Figure

    columns = min(count, 3)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(4.4 * columns, height * lines + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in panels[count:]:
        axis.set_visible(False)
    return figure, panels[:count]


def _scale(metric: str) -> tuple[float, str]:
    return (100.0, "%") if in_percent(metric) else (1.0, "value")


def _time_unit(comparison: Comparison) -> tuple[float, str]:
    longest = max(r.training_seconds for arm in comparison.arms for r in arm.records)
    return next((length, name) for least, length, name in _UNITS if longest >= least)


def _has_curve(comparison: Comparison, metric: str) -> bool:
    return any(len(r.curves.get(metric, ())) > 1 for arm in comparison.arms for r in arm.records)


def _curve_metrics(comparison: Comparison) -> list[str]:
    every = (record.curves for arm in comparison.arms for record in arm.records)
    found = dict.fromkeys(key for curves in every for key in curves)
    return sorted(found, key=lambda key: key.startswith("train/"))


def _title(metric: str) -> str:
    if metric.startswith("train/"):
        return in_figure(f"{metric.removeprefix('train/')} (training batches)".replace("/", " "))
    return in_figure(metric.removeprefix("eval/").replace("/", " "))
