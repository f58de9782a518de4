"""Annotated images for evaluators that bring data of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from sslkit.api import (
    DataSource,
    HasBoxes,
    HasMasks,
    ImageReader,
    RunFacts,
    Slot,
    UnreadableImageError,
)
from sslkit.errors import DataError, PluginError, RecipeError
from sslkit.threads import in_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Annotation = Literal["masks", "boxes"]
T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4
_AHEAD = 16
"""Images that are read before they are asked for. Neither has an effect on results."""
_FIELD = re.compile(r"data\.(\w+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class AnnotatedData:
    """Both splits of annotated data, with the same classes."""

    train: ImageReader
    test: ImageReader
    classes: tuple[str, ...]


def open_annotated(data: Slot[DataSource], annotation: Annotation) -> AnnotatedData:
    """Opens both splits. Raises RecipeError where one is missing, or lacks the annotations, and
    whatever the source raises."""
    source = data.build()
    readers = [_annotated(source, data.name, split, annotation) for split in ("train", "test")]
    train, test = (_classes(reader, annotation) for reader in readers)
    if train is None or train != test:
        raise RecipeError(
            f"data: the splits of {data.name} have other classes ({_few(train)}; {_few(test)}); "
            "expected the same ones in the same order"
        )
    if len(readers[0]) == len(readers[1]) and (
        readers[0].fingerprint() == readers[1].fingerprint()
    ):
        raise RecipeError(
            f"data: the test split of {data.name} is its training split (equal fingerprints); name "
            "another one"
        )
    if len({reader.channels for reader in readers}) > 1:
        raise RecipeError(f"data: the splits of {data.name} differ in their channels")
    return AnnotatedData(readers[0], readers[1], train)


def _annotated(
    source: DataSource, name: str, split: Literal["train", "test"], annotation: Annotation
) -> ImageReader:
    reader = source.open(split)
    if reader is None or not len(reader):
        raise RecipeError(
            f"data: {name} has no {split} images; dense protocols need a training and a test split"
        )
    if not isinstance(reader, ImageReader) or _classes(reader, annotation) is None:
        raise RecipeError(
            f"data: {name} has no {annotation} as it is configured; built-in sources with masks: "
            "scenes, voc (task: segmentation); with boxes: scenes, voc (task: detection), coco"
        )
    return reader


def _classes(reader: ImageReader, annotation: Annotation) -> tuple[str, ...] | None:
    ability = HasMasks if annotation == "masks" else HasBoxes
    name = "mask_classes" if annotation == "masks" else "box_classes"
    # None: a reader of interface 1 that has no annotations as it is configured.
    classes = getattr(reader, name, None) if isinstance(reader, ability) else None
    return None if classes is None else tuple(classes)


def _few(names: Sequence[str] | None) -> str:
    return ", ".join((names or ())[:4]) + (", ..." if names and len(names) > 4 else "")


def data_problems(
    data: Slot[DataSource], annotation: Annotation, facts: RunFacts
) -> Iterator[tuple[str, str]]:
    """What `Evaluator.problems` yields for a field `data`: paths that are not there, annotations
    that are missing, channels that the encoder does not take."""
    if not facts.sample.is_image:
        yield "data", f"holds images, and the encoder takes samples of {facts.sample}; leave it out"
        return
    try:
        found = open_annotated(data, annotation)
    except (RecipeError, DataError, PluginError) as error:
        for line in str(error).splitlines():
            inside = _FIELD.fullmatch(line)
            if inside and inside[1] in type(data.config).model_fields:
                yield f"data.{inside[1]}", inside[2]
            else:
                yield "data", line.removeprefix("data: ")
        return
    if found.train.channels != facts.channels:
        yield (
            "data",
            f"its images have {found.train.channels} channel(s), and the encoder takes "
            f"{facts.channels}; choose other data, or set its channels",
        )


def read_image(reader: ImageReader, index: int) -> Tensor:
    """(C, H, W) uint8. Raises DataError for an image that cannot be read: annotated data is small
    and chosen, so that none is replaced."""
    try:
        pixels = reader.read(index)
    except (UnreadableImageError, OSError) as error:
        raise DataError(
            f"{reader.describe(index)}: {error}; mend the image, or leave it out of its list"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def annotated_images(work: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """What `work` reads and decodes for each item, in order, by a few threads. Raises what it
    raises."""
    return in_order(work, items, num_threads=_THREADS, ahead=_AHEAD)


def class_bars(names: Sequence[str], values: Sequence[float], what: str) -> Figure:
    """A bar for each class, 0 to 100 %; none for a value that is not a number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, max(2.0, 0.6 + 0.2 * len(names))), layout="constrained")
    axes = figure.add_subplot()
    heights = [100.0 * value if value == value else 0.0 for value in values]
    bars = axes.barh(range(len(names)), heights)
    labels = [f"{100.0 * value:.1f}" if value == value else "-" for value in values]
    axes.bar_label(bars, labels, padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel=f"{what}, %")
    axes.grid(axis="x", alpha=0.3)
    return figure
