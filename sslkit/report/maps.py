"""Maps of features: which images are shown, and the panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslkit.randomness import random_subset, shuffled

from .harmless import in_figure
from .projection import METHODS, Projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 2000
"""On a map, at most."""
CLASSES = 20
"""On a map, at most: more colours cannot be told apart."""
_COLOURS = "tab10", "tab20"
_SHOWN_NAME = 18

_LETTER, _HANDLE = 0.07, 0.4
"""Widths in the legend, inches: a letter, the dot beside a name with its space."""


@dataclass(frozen=True)
class MapImages:
    """The images of a map, in the order in which they are drawn."""

    rows: Tensor  # (M,) int64, positions in the split
    labels: Tensor | None  # (M,) int64
    classes: Mapping[int, str]
    """Class index -> its name, of those that are shown."""
    left_out: int = 0
    """Classes that are not shown."""

    def sentence(self, split: str) -> str:
        """Which images these are."""
        text = f"{len(self.rows):,} images of the {split} split, chosen by a fixed seed"
        if self.left_out:
            text += f", of {len(self.classes)} of {len(self.classes) + self.left_out} classes"
        return text


def choose_images(
    num_images: int,
    labels: Tensor | None,
    class_names: Sequence[str] | None,
    *,
    seed: int,
    at_most: int = IMAGES,
) -> MapImages:
    """Images that depend on the seed and the data alone, in random order, so that none of the
    classes lies on top of the others. Where there are labels, images without one are left out."""
    if labels is None or not bool((labels >= 0).any()):
        rows = random_subset(seed, "map/images", num_images, at_most)
        return MapImages(shuffled(rows, seed), None, {})
    labels = labels.cpu()
    present = torch.unique(labels[labels >= 0])
    shown = present[random_subset(seed, "map/classes", len(present), CLASSES)]
    eligible = torch.isin(labels, shown).nonzero()[:, 0]
    rows = shuffled(eligible[random_subset(seed, "map/images", len(eligible), at_most)], seed)
    classes = {index: class_name(class_names, index) for index in shown.tolist()}
    return MapImages(rows, labels[rows], classes, len(present) - len(shown))


def class_name(names: Sequence[str] | None, index: int) -> str:
    """The name of a class; its number where there are no names."""
    return names[index] if names else str(index)


def draw_map(panels: Mapping[str, Projection], images: MapImages, method: str) -> Figure:
    """A panel per subject: the same images in the same order, coloured by class."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(panels), 3 if len(panels) != 4 else 2)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.7 * columns, 3.8 * lines + 0.5), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    palette = colormaps[_COLOURS[len(images.classes) > 10]]
    colour = {index: palette(place) for place, index in enumerate(images.classes)}
    grey = (0.4, 0.45, 0.5, 1.0)
    colours = (
        [grey] * len(images.rows) if images.labels is None
        else [colour[label] for label in images.labels.tolist()]
    )  # fmt: skip
    size = max(5.0, min(14.0, 6000 / max(len(images.rows), 1)))
    for axis, (label, found) in zip(axes, panels.items(), strict=False):
        axis.scatter(found.points[:, 0].numpy(), found.points[:, 1].numpy(), c=colours, s=size,
                     alpha=0.75, linewidths=0, rasterized=True)  # fmt: skip
        axis.set(title=in_figure(label), xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        if found.explained is not None:
            first, second = (f"{part:.0%} of the variance" for part in found.explained)
            axis.set(xlabel=f"first axis, {first}", ylabel=f"second axis, {second}")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(METHODS[method], fontsize=11)
    handles = [Line2D([], [], marker="o", ls="", color=colour[index]) for index in images.classes]
    names = [_short(name) for name in images.classes.values()]
    if handles:
        width = float(figure.get_size_inches()[0])
        fit = int(width / (_HANDLE + _LETTER * max(map(len, names))))
        across = _legend_columns(len(names), max(1, min(2 + 2 * columns, fit)))
        order = [place for first in range(across) for place in range(first, len(names), across)]
        figure.legend([handles[place] for place in order],
                      [in_figure(names[place]) for place in order],
                      ncols=across, frameon=False, fontsize=8, handletextpad=0.1,
                      loc="outside lower center")  # fmt: skip
    return figure


def _legend_columns(entries: int, most: int) -> int:
    """How many columns of a legend have at most `most` entries beside each other, in rows that are
    about equally long."""
    return math.ceil(entries / math.ceil(entries / most))


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME - 1]}…"
