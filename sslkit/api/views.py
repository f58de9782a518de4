"""Augmentations: how the views of a batch are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslkit.errors import DataError, RecipeError
from sslkit.nn.image import Interpolation, crop_resize
from sslkit.randomness import SampleRandom

from .component import Component, RunFacts
from .data import Batch
from .samples import SampleSpec, ViewSpec

VIEW_STREAM, METHOD_STREAM = "augment", "method"
"""Streams of the keyed randomness of a batch: of its views, and `Batch.random`."""

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

    @torch.no_grad()
    def __call__(
        self,
        samples: Tensor,
        indices: Tensor,
        *,
        epoch: int = 0,
        seed: int = 0,
        labels: Tensor | None = None,
    ) -> Batch:
        """The views of a batch, for programs that train by themselves.

        samples: (B, *shape) as a reader gives them, channels first, of one shape and on any device:
        (B, C, H, W) uint8 of images. indices: (B,) int64, the positions of the samples in their
        set. A sample gets other views in each epoch; views follow from (seed, epoch, index) alone
        and are those of a run with this seed, to the bit where it holds its images in memory.

        Raises DataError and RecipeError for samples that it does not take."""
        sample = SampleSpec(tuple(samples.shape[1:]), str(samples.dtype).removeprefix("torch."))
        if isinstance(self, ImageAugmentation) and not sample.is_image:
            raise DataError(f"images of {sample}: valid are (B, C, H, W) uint8 pixels")
        if indices.shape != samples.shape[:1]:
            raise DataError(
                f"indices of {tuple(indices.shape)} for {len(samples)} samples: valid is the "
                "position of each in its set"
            )
        refuse_misfit(self, sample, len(samples))
        rows, sides = indices.cpu(), torch.tensor([sample.sides])
        drawn = self.draw(SampleRandom(seed, VIEW_STREAM, epoch, rows), sides.expand(len(rows), -1))
        targets = {name: each.to(samples.device) for name, each in self.targets(drawn).items()}
        params = [
            {name: value.to(samples.device) for name, value in each.items()} for each in drawn
        ]
        return Batch(
            views=tuple(self.make(view, samples, each) for view, each in enumerate(params)),
            indices=indices,
            random=SampleRandom(seed, METHOD_STREAM, epoch, indices),
            labels=labels,
            targets=targets,
        )

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


def refuse_misfit(augmentation: Augmentation, sample: SampleSpec, num_samples: int) -> None:
    """Raises RecipeError with each reason why an augmentation does not suit such samples, as a run
    does before its first step."""
    height_width = sample.sides if sample.is_image else None
    facts = RunFacts(
        num_images=num_samples,
        channels=sample.channels,
        image_size=None if height_width is None else (height_width[0], height_width[1]),
        num_classes=None,
        batch_size=num_samples,
        steps_per_epoch=1,
        total_steps=1,
        views=augmentation.views,
        other_samples=None if sample.is_image else sample,
    )
    config = getattr(augmentation, "config", None)  # one that needs none may have none
    found = type(augmentation).problems(config, facts)
    problems = [
        f"{'.'.join(filter(None, ['augmentation', path]))}: {message}" for path, message in found
    ]
    if problems:
        raise RecipeError(*problems)
