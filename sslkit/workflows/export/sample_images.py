"""The images, or other samples, that an export is compared with the encoder on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sslkit.api import (
    DataSource,
    ImageReader,
    Preprocess,
    SampleSpec,
    Slot,
    SplitReader,
    UnreadableImageError,
)
from sslkit.data.resize import prepare_for_encoder
from sslkit.data.splits import open_splits
from sslkit.errors import SSLKitError, message_of
from sslkit.randomness import seeded

from .source import ExportSource

COUNT = 32
_MOST_VALUES = 1 << 26
"""Values of all images together, as the encoder takes them: 256 MB. Large ones are fewer."""
_GRID = 8
"""Side, in cells, of the coarse noise that synthetic images are."""
_SPLITS: tuple[Literal["test", "train"], ...] = ("test", "train")


@dataclass(frozen=True)
class Probe:
    """Samples as they come from the data source."""

    images: tuple[Tensor, ...]
    """Each (1, C, H, W) uint8, or (1, *shape) of other samples."""
    origin: str
    """What they are, for people: "32 test images of digits"."""
    synthetic: bool

    def batch(self, preprocess: Preprocess | None) -> Tensor:
        """(N, C, S, S) float32 in [0, 1]: resized and cropped; without `preprocess`, whole samples
        as they are."""
        if preprocess is None:
            samples = torch.cat(self.images)
            return samples / 255.0 if self.pixels else samples
        return torch.cat(
            [prepare_for_encoder(image / 255.0, preprocess) for image in self.images]
        ).contiguous()

    @property
    def pixels(self) -> bool:
        """Whether these are images."""
        return self.images[0].dtype == torch.uint8 and self.images[0].ndim == 4


def make_probe(source: ExportSource) -> Probe:
    """Images of the run's data, spread over its test split (the training split where there is no
    other); synthetic ones, which depend on nothing, where the data cannot be read any more."""
    if source.recipe is None:
        return _synthetic(source, source.alone)
    try:
        return _real(source, source.recipe.data)
    except (SSLKitError, OSError) as error:
        return _synthetic(source, f"the data cannot be read: {message_of(error)}")


def _real(source: ExportSource, data: Slot[DataSource]) -> Probe:
    splits = open_splits(data)
    for split in _SPLITS:
        reader = splits.of(split)
        if reader is None:
            continue
        if reader.sample.channels != source.channels:
            reason = f"those of '{data.name}' have {reader.sample.channels} channel(s) now"
            return _synthetic(source, reason)
        if not source.encoder.takes_images and reader.sample != source.sample:
            return _synthetic(source, f"those of '{data.name}' are {reader.sample} now")
        images = tuple(_spread(reader, _count(source)))
        if images:
            what = _word(source.sample)
            return Probe(images, f"{len(images)} {split} {what} of {data.name}", synthetic=False)
    return _synthetic(source, f"'{data.name}' has no {_word(source.sample)} that can be read")


def _word(sample: SampleSpec) -> str:
    return "images" if sample.is_image else "samples"


def _count(source: ExportSource) -> int:
    """How many samples there should be."""
    shape = source.shape
    if source.encoder.takes_images:
        side = source.encoder.preprocess.resize
        shape = (source.channels, side, side)
    return max(1, min(COUNT, _MOST_VALUES // math.prod(shape)))


def _spread(reader: SplitReader, most: int) -> list[Tensor]:
    count = min(most, len(reader))
    images = []
    for index in torch.linspace(0, len(reader) - 1, count, dtype=torch.float64).long().tolist():
        try:
            image = reader.read(index)
        except UnreadableImageError:
            continue
        sample = torch.from_numpy(image.copy())
        sample = sample.permute(2, 0, 1) if isinstance(reader, ImageReader) else sample
        images.append(sample[None])
    return images


def _synthetic(source: ExportSource, reason: str) -> Probe:
    count = _count(source)
    if not source.encoder.takes_images:
        with seeded(0, "export"):
            noise = torch.rand(count, *source.shape)
        noise = (255.0 * noise if source.sample.is_image else noise).to(source.sample.torch_dtype)
        what = f"{count} synthetic {_word(source.sample)} ({reason})"
        return Probe(torch.split(noise, 1), what, synthetic=True)
    side = source.encoder.preprocess.resize
    with seeded(0, "export"):
        cells = torch.rand(count, source.channels, _GRID, _GRID)
    smooth = functional.interpolate(cells, size=(side, side), mode="bicubic").clamp(0.0, 1.0)
    images = (255.0 * smooth).round().to(torch.uint8)
    return Probe(torch.split(images, 1), f"{count} synthetic images ({reason})", synthetic=True)
