"""Augmentations: how the views of a batch are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sslkit.nn.image import Interpolation, crop_resize
from sslkit.randomness import SampleRandom

from .component import Component
from .samples import ViewSpec

Params = Mapping[str, Tensor]
"""The random parameters of one view: each tensor is (B, ...), one row per sample."""


@dataclass(frozen=True)
class Geometry:
    """The crop of one view of images, executed while decoding or on the batch."""

    box: Tensor
    """(B, 4) float32: top, left, height, width in source pixels."""
    flip: Tensor
    """(B,) bool: mirror left-right after resizing."""
    size: int | tuple[int, int]
    """The size of the result, as in its ViewSpec: the side of a square, or (height, width), in
    pixels."""
    interpolation: Interpolation = "bilinear"
    """Antialiased when it shrinks."""


class Augmentation(Component, ABC):
    """Makes the views of a batch, of samples of any shape. Parameters are drawn per sample; values
    are worked on in whole batches on the training device. Views of images derive from
    `ImageAugmentation`, which is faster for them.

    Who calls what: `views` is read before anything else and stays the same. `draw` and `targets`
    are called in loader threads, several at once, on the CPU, for parts of a batch: what a sample
    gets must follow from its key alone. `make` is called in the thread of the training, without
    gradients, on the training device, and may be compiled. None of them keeps state, uses a global
    generator or changes what it is given; all of this is tried before the first step."""

    kind = "augmentation"

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    @abstractmethod
    def views(self) -> tuple[ViewSpec, ...]:
        """Shape and role of each view."""

    @abstractmethod
    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        """The parameters of each view, on the CPU. sizes: (B, n) the sides of the samples after the
        channels: height and width of images, the length of series."""

    @abstractmethod
    def make(self, view: int, samples: Tensor, params: Params) -> Tensor:
        """One view of a batch: samples (B, *shape) as the reader gives them, channels first, to
        (B, *shape of the view)."""

    def targets(self, params: list[Params]) -> Mapping[str, Tensor]:
        """Labels that the drawn parameters define, for pretext tasks; each (B, ...)."""
        return {}


class ImageAugmentation(Augmentation):
    """Makes views of images in two parts: a crop, which is done while images are decoded where they
    do not lie in memory, and everything after it.

    `geometry` is called where `draw` is. `photometric` is called like `make`; on a CPU, where
    images are decoded as they are needed, by several loader threads at once."""

    @abstractmethod
    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        """The crop of a view. sizes: (B, 2) height and width of the images."""

    @abstractmethod
    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        """Everything after the crop: (B, C, *sides of the view) float in [0, 1] to the same shape
        and range."""

    def make(self, view: int, samples: Tensor, params: Params) -> Tensor:
        """Both parts, for images of one size: (B, C, H, W) uint8."""
        sizes = samples.new_tensor(samples.shape[-2:]).long().expand(len(samples), 2)
        crop = self.geometry(view, params, sizes)
        cropped = crop_resize(samples, crop.box, crop.flip, crop.size, crop.interpolation)
        return self.photometric(view, cropped, params)
