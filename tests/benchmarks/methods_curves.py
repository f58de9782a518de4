"""The figure of the table of methods: a small panel for each, before the others of its half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5
_SMOOTHED = 1
"""Points on either side over which a curve is averaged: one alone is of a single batch."""

Curve = tuple[Sequence[float], Sequence[float]]


def figure_of_curves(halves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Top-1 of the online probe on training batches against the part of training that is done, the
    mean over seeds; of each half a block of panels, in the order given."""
    from matplotlib.figure import Figure

    rows = [-(-len(half) // _COLUMNS) for half in halves.values()]
    figure = Figure(figsize=(10, sum(1.7 * count + 0.5 for count in rows)), layout="constrained")
    heights = [1.7 * count + 0.5 for count in rows]
    blocks = figure.subfigures(len(rows), squeeze=False, height_ratios=heights)[:, 0]
    for block, count, (title, half) in zip(blocks, rows, halves.items(), strict=True):
        block.suptitle(title)
        block.supxlabel("part of training, %", fontsize="medium")
        block.supylabel("online probe, top-1 in %", fontsize="medium")
        panels = list(block.subplots(count, _COLUMNS, squeeze=False, sharex=True, sharey=True).flat)
        found = {each["method"]: mean_curve(each["curves"]) for each in half}
        for panel, name in zip(panels, found, strict=False):
            _draw(panel, name, found)
        for panel in panels[len(found) :]:
            panel.set_axis_off()
    return figure


def _draw(panel: Axes, name: str, curves: Mapping[str, Curve]) -> None:
    for other, curve in curves.items():
        if other != name:
            panel.plot(*curve, color="0.85", linewidth=0.7)
    panel.plot(*curves[name], color="#0b5394", linewidth=1.8)
    panel.set_title(name, fontsize="medium")


def mean_curve(runs: Sequence[Sequence[tuple[int, float]]]) -> Curve:
    """Of curves of (step, part): the part of the last step in %, and the mean of all runs and of
    neighbouring points in %, at the steps that all runs have."""
    by_step = [dict(map(tuple, run)) for run in runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    means = [fmean(run[step] for run in by_step) for step in steps]
    smooth = [fmean(means[max(0, at - _SMOOTHED) : at + _SMOOTHED + 1]) for at in range(len(means))]
    return [100 * step / steps[-1] for step in steps], [100 * value for value in smooth]
