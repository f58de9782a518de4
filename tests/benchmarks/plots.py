"""The plots of the report. Colours are by arm, the same in every plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .pairing import Interval
from .results import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (
    ("ours, compiled", "#0b5394"), ("sslkit compiled", "#0b5394"), ("ours", "#3d85c6"),
    ("sslkit", "#3d85c6"), ("ceiling", "#999999"), ("lightly", "#e69138"), ("plain", "#cc4125"),
)  # fmt: skip


def ratio_figure(groups: Sequence[Group]) -> Figure | None:
    """Speed of every arm against the reference of its group, with intervals."""
    rows = [
        (f"{group.title}\n{arm.name}", arm.name, ratio)
        for group in groups
        if group.reference is not None
        for arm in group.arms
        if (ratio := group.ratio(arm.name, group.reference)) is not None
        and arm.name != group.reference
    ]
    references = sorted({group.reference for group in groups if group.reference is not None})
    label = f"speed, {' or '.join(references)} = 1"
    return _bars(rows, label, logarithmic=True) if rows else None


def share_figure(groups: Sequence[Group]) -> Figure | None:
    """Share of the ceiling, with intervals."""
    rows = [
        (f"{group.title}\n{arm.name}", arm.name, _percent(ratio))
        for group in groups
        if group.ceiling is not None
        for arm in group.arms
        if (ratio := group.ratio(arm.name, group.ceiling)) is not None and arm.name != group.ceiling
    ]
    return _bars(rows, "share of the ceiling, %", logarithmic=False) if rows else None


def memory_figure(groups: Sequence[Group]) -> Figure | None:
    """Extra memory by the number of embeddings; a straight line of slope 1 is linear growth."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for arm in group.arms:
            if arm.extra_memory_mb:
                point = (float(group.facts["embeddings"]), arm.extra_memory_mb)
                curves.setdefault(arm.name, []).append(point)
    if not curves:
        return None
    figure, axis = _axis(4.0)
    for name, points in curves.items():
        x, y = zip(*sorted(points), strict=True)
        axis.plot(x, y, "o-", color=_colour(name), label=name)
    ours = sorted(curves.get("ours", next(iter(curves.values()))))
    x0, y0 = ours[-1]
    ends = (ours[0][0], x0)
    axis.plot(ends, [y0 * x / x0 for x in ends], ":", color="black", lw=1, label="linear")
    axis.set(xlabel="embeddings", ylabel="extra peak memory, MB")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _logarithmic(axis.yaxis, axis.set_yscale, (1.0, 3.0))
    axis.legend(fontsize=8, frameon=False)
    return figure


def micro_batch_figure(groups: Sequence[Group]) -> Figure | None:
    """Memory and time of parts of a batch, relative to the whole."""
    (group, *_) = groups
    arms = [arm for arm in group.arms if arm.seconds and arm.extra_memory_mb]
    if not arms or group.reference is None:
        return None
    whole = arms[0].extra_memory_mb
    assert whole is not None
    figure, axis = _axis(3.5)
    names = [arm.name for arm in arms]
    memory = [(arm.extra_memory_mb or 0.0) / whole for arm in arms]
    time = [1.0 / r.median if (r := group.ratio(a.name, group.reference)) else 1.0 for a in arms]
    axis.plot(names, memory, "o-", color="#3d85c6", label="extra peak memory")
    axis.plot(names, time, "s--", color="#e69138", label="time of a step")
    axis.set(ylabel="whole batch = 1", ylim=(0, None), title=group.title)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _bars(rows: Sequence[tuple[str, str, Interval]], label: str, logarithmic: bool) -> Figure:
    figure, axis = _axis(0.8 + 0.38 * len(rows))
    for place, (_, name, interval) in enumerate(rows):
        start = 1.0 if logarithmic else 0.0
        axis.barh(place, interval.median - start, left=start, color=_colour(name), height=0.7)
        axis.hlines(place, interval.low, interval.high, color="black", lw=1.2)
        axis.annotate(
            f" {interval.median:.3g}", (max(interval.high, interval.median), place), fontsize=7,
            va="center",
        )  # fmt: skip
    axis.axvline(100.0 if not logarithmic else 1.0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), [title for title, _, _ in rows], fontsize=6)
    axis.invert_yaxis()
    if logarithmic:
        _logarithmic(axis.xaxis, axis.set_xscale, (1.0, 2.0, 5.0))
    axis.set_xlabel(label)
    axis.margins(x=0.12)
    return figure


def _logarithmic(axis: Any, set_scale: Any, subdivisions: tuple[float, ...]) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5, 10."""
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=subdivisions))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _axis(height: float) -> tuple[Figure, Any]:
    from matplotlib import rcParams
    from matplotlib.figure import Figure  # without pyplot: no global state

    rcParams["svg.hashsalt"] = "sslkit"  # the same picture gives the same file
    figure = Figure(figsize=(8.0, height), dpi=100, layout="constrained")
    axis: Any = figure.subplots()
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    return figure, axis


def _colour(name: str) -> str:
    return next((colour for start, colour in _COLOURS if name.startswith(start)), "#666666")


def _percent(interval: Interval) -> Interval:
    return Interval(
        100 * interval.median,
        100 * interval.low,
        100 * interval.high,
        interval.coverage,
        interval.n,
    )
