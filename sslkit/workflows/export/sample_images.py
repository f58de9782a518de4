"""The images that an export is compared with the encoder on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sslkit.api import DataSource, Preprocess, Slot, SplitReader, UnreadableImageError
from sslkit.data.resize import prepare_for_encoder
from sslkit.data.splits import open_splits
from sslkit.errors import SSLKitError
from sslkit.randomness import seeded

from .source import ExportSource

COUNT = 32
_GRID = 8
"""Side, in cells, of the coarse noise that synthetic images are."""
_SPLITS: tuple[Literal["test", "train"], ...] = ("test", "train")


@dataclass(frozen=True)
class Probe:
    """Images as they come from the data source."""

    images: tuple[Tensor, ...]
    """Each (1, C, H, W) uint8."""
    origin: str
    """What they are, for people: "32 test images of digits"."""
    synthetic: bool

    def batch(self, preprocess: Preprocess) -> Tensor:
        """(N, C, S, S) float32 in [0, 1]: resized and cropped."""
        return torch.cat(
            [prepare_for_encoder(image / 255.0, preprocess) for image in self.images]
        ).contiguous()


def make_probe(source: ExportSource) -> Probe:
    """Images of the run's data, spread over its test split (the training split where there is no
    other); synthetic ones, which depend on nothing, where the data cannot be read any more."""
    if source.recipe is None:
        return _synthetic(source, source.alone)
    try:
        return _real(source, source.recipe.data)
    except (SSLKitError, OSError) as error:
        return _synthetic(source, f"the data cannot be read: {' '.join(str(error).split())}")


def _real(source: ExportSource, data: Slot[DataSource]) -> Probe:
    splits = open_splits(data)
    for split in _SPLITS:
        reader = splits.of(split)
        if reader is None:
            continue
        if reader.channels != source.channels:
            reason = f"those of '{data.name}' have {reader.channels} channel(s) now"
            return _synthetic(source, reason)
        images = tuple(_spread(reader))
        if images:
            return Probe(images, f"{len(images)} {split} images of {data.name}", synthetic=False)
    return _synthetic(source, f"'{data.name}' has no images that can be read")


def _spread(reader: SplitReader) -> list[Tensor]:
    count = min(COUNT, len(reader))
    images = []
    for index in torch.linspace(0, len(reader) - 1, count, dtype=torch.float64).long().tolist():
        try:
            image = reader.read(index)
        except UnreadableImageError:
            continue
        images.append(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
    return images


def _synthetic(source: ExportSource, reason: str) -> Probe:
    side = source.encoder.preprocess.resize
    with seeded(0, "export"):
        cells = torch.rand(COUNT, source.channels, _GRID, _GRID)
    smooth = functional.interpolate(cells, size=(side, side), mode="bicubic").clamp(0.0, 1.0)
    images = (255.0 * smooth).round().to(torch.uint8)
    return Probe(torch.split(images, 1), f"{COUNT} synthetic images ({reason})", synthetic=True)
