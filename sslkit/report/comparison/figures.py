"""Pictures of a comparison, and their form as SVG that needs nothing from elsewhere."""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .record import Point
from .table import SUBJECTS, Arm, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2f6db5", "#d1662b", "#3c8d53", "#8a5aa8", "#b8860b", "#c0437a", "#4f9da6", "#6b6b6b")
"""By arm, in their order; from the ninth on they repeat with another line."""
_LINES = ("-", "--", ":", "-.")
_SUBJECT_LINES = {"pixels": ":", "untrained": (0, (5, 2, 1, 2))}
_STYLE = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}


def draw_all(comparison: Comparison) -> dict[str, Figure]:
    """Name -> figure; a figure that has nothing to show is left out."""
    figures = {}
    metrics = [key for key in _curve_metrics(comparison) if _has_curve(comparison, key)]
    if metrics:
        figures["learning_curves"] = _curves(comparison, metrics, "epoch", lambda p: p.epoch)
        figures["accuracy_against_time"] = _curves(
            comparison, metrics, "training time, s", lambda p: p.seconds
        )
    if comparison.rows:
        figures["final_accuracies"] = draw_accuracies(comparison)
    return figures


def draw_accuracies(comparison: Comparison) -> Figure:
    """A panel per accuracy: each arm's mean with its 95 % interval, its seeds as small dots, and
    lines where pixels and the untrained encoder are."""
    from matplotlib.figure import Figure

    metrics = [
        key for key in comparison.metrics if any(row.metric == key for row in comparison.rows)
    ]
    columns = min(len(metrics), 3)
    lines = math.ceil(len(metrics) / columns)
    height = 1.1 + 0.32 * len(comparison.arms)
    figure = Figure(figsize=(4.4 * columns, height * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    labels = [arm.label for arm in comparison.arms]
    for axis, metric in zip(panels, metrics, strict=False):
        rows = [row for row in comparison.rows if row.metric == metric]
        for row in rows:
            place = labels.index(row.arm)
            colour = COLOURS[place % len(COLOURS)]
            axis.plot([100 * v for v in row.values], [place] * len(row.values), "|", ms=9,
                      color=colour, alpha=0.6)  # fmt: skip
            axis.plot([100 * row.mean.mean], [place], "o", ms=6, color=colour)
            if not math.isnan(row.mean.low):
                axis.hlines(place, 100 * row.mean.low, 100 * row.mean.high, color=colour, lw=1.6)
        for subject in SUBJECTS:
            found = [row.mean.mean - row.against[subject].mean for row in rows
                     if subject in row.against]  # fmt: skip
            if found:
                axis.axvline(100 * fmean(found), color="#808895", lw=1,
                             ls=_SUBJECT_LINES[subject], label=subject)  # fmt: skip
        axis.set(title=_title(metric), xlabel="accuracy, %", ylim=(len(labels) - 0.5, -0.5))
        axis.set_yticks(range(len(labels)), labels)
        axis.grid(axis="x", alpha=0.3)
    for axis in list(figure.axes)[len(metrics) :]:
        axis.set_visible(False)
    legend = {name: handle for axis in figure.axes
              for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}  # fmt: skip
    if legend:
        figure.legend(list(legend.values()), list(legend), ncols=2, loc="outside lower center",
                      frameon=False)  # fmt: skip
    return figure


def _curves(
    comparison: Comparison, metrics: Sequence[str], xlabel: str, x_of: Callable[[Point], float]
) -> Figure:
    """A panel per metric: the mean of each arm over its seeds, and a band from its lowest to its
    highest seed."""
    from matplotlib.figure import Figure

    columns = min(len(metrics), 3)
    lines = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    for axis, metric in zip(panels, metrics, strict=False):
        for place, arm in enumerate(comparison.arms):
            band = curve_band(arm, metric, x_of)
            if not band:
                continue
            x = [point[0] for point in band]
            colour = COLOURS[place % len(COLOURS)]
            style = _LINES[place // len(COLOURS) % len(_LINES)]
            mark = "o" if len(band) < 30 else None
            (line,) = axis.plot(x, [100 * point[1] for point in band], color=colour, ls=style,
                                marker=mark, ms=3, lw=1.5)  # fmt: skip
            axis.fill_between(x, [100 * point[2] for point in band],
                              [100 * point[3] for point in band], color=colour,
                              alpha=0.18, lw=0)  # fmt: skip
            handles.setdefault(arm.label, line)
        if comparison.time_limit is not None and xlabel.startswith("training time"):
            axis.axvline(comparison.time_limit, color="#808895", lw=1, ls="--")
        axis.set(title=_title(metric), xlabel=xlabel, ylabel="accuracy, %")
        axis.grid(alpha=0.3)
    for axis in list(figure.axes)[len(metrics) :]:
        axis.set_visible(False)
    figure.legend(list(handles.values()), list(handles), ncols=min(len(handles), 4),
                  loc="outside lower center", frameon=False)  # fmt: skip
    return figure


def curve_band(
    arm: Arm, metric: str, x_of: Callable[[Point], float]
) -> list[tuple[float, float, float, float]]:
    """(x, mean, lowest, highest) over the seeds of an arm, at the steps that all of them have; x
    is the mean over seeds too, since seeds take different times."""
    at: dict[int, list[Point]] = defaultdict(list)
    for record in arm.records:
        for point in {p.step: p for p in record.curves.get(metric, ())}.values():
            at[point.step].append(point)
    found = []
    for step in sorted(at):
        points = at[step]
        if len(points) == len(arm.records):
            values = [point.value for point in points]
            x = fmean(x_of(point) for point in points)
            found.append((x, fmean(values), min(values), max(values)))
    return found


def svg_text(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element: no XML head, no document type, no metadata, and ids that
    start from `name`, so that several may stand in one page. Equal figures give equal text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing: Mapping[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids of groups (figure_1, axes_1, ...) are counted anew in every figure.
    return re.sub(r'(<g id=")', rf"\g<1>{name}-", text)


def _has_curve(comparison: Comparison, metric: str) -> bool:
    return any(len(r.curves.get(metric, ())) > 1 for arm in comparison.arms for r in arm.records)


def _curve_metrics(comparison: Comparison) -> list[str]:
    every = (record.curves for arm in comparison.arms for record in arm.records)
    found = dict.fromkeys(key for curves in every for key in curves)
    return sorted(found, key=lambda key: key.startswith("train/"))


def _title(metric: str) -> str:
    if metric.startswith("train/"):
        return f"{metric.removeprefix('train/')} (training batches)".replace("/", " ")
    return metric.removeprefix("eval/").replace("/", " ")
