"""Learning curves of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sslkit.tracking.metrics_file import MetricLine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("train/loss",)),
    ("learning rate", ("train/lr",)),
    ("top-1 accuracy", ("train/online_probe/top1", "train/contrastive_top1", "eval/*/top1")),
    ("collapse: std", ("collapse/std",)),
)


def draw_curves(lines: Sequence[MetricLine]) -> Figure:
    """Loss, learning rate, accuracies and collapse over epochs, as far as they were logged."""
    from matplotlib.figure import Figure

    steps_per_epoch = _steps_per_epoch(lines)
    panels = [(title, curves) for title, keys in _PANELS if (curves := _curves(lines, keys))]
    figure = Figure(figsize=(4.2 * max(len(panels), 1), 3.2), layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels, strict=False):
        for key, points in curves.items():
            x = [step / steps_per_epoch for step, _ in points]
            y = [value for _, value in points]
            axis.plot(x, y, marker="o" if len(points) < 30 else None, ms=3, lw=1.4, label=key)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(curves) > 1 or title.startswith(("top", "collapse")):
            axis.legend(fontsize=7)
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
