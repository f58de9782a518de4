"""Random resized crop and flip alone: the augmentation of classifiers and of masked images."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from sslkit.api import (
    ComponentConfig,
    FractionRange,
    Geometry,
    ImageAugmentation,
    Params,
    PositiveRange,
    ViewSpec,
)
from sslkit.nn.image import Interpolation, random_resized_crop_boxes
from sslkit.randomness import SampleRandom


class CropFlip(ImageAugmentation):
    """A random part of the image, resized, and mirrored half of the time: what published linear
    evaluation, fine-tuning and MAE do to training images."""

    class Config(ComponentConfig):
        size: PositiveInt
        """Side of the view, pixels."""
        crop_scale: FractionRange = (0.08, 1.0)
        """Range of the crop's area, as a fraction of the image's."""
        crop_ratio: PositiveRange = (3 / 4, 4 / 3)
        """Range of the crop's width / height, log-uniform."""
        flip: float = Field(default=0.5, ge=0.0, le=1.0)
        """Probability of mirroring left-right."""
        interpolation: Interpolation = "bicubic"
        """Filter of the resize, antialiased."""
        num_views: PositiveInt = 1
        """Views of each image, each with a crop of its own."""

        @model_validator(mode="after")
        def _check_ranges(self) -> Self:
            return self

    config: Config

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec(self.config.size),) * self.config.num_views

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        return [
            self._draw(random.substream("view", view), sizes) for view in range(len(self.views))
        ]

    def _draw(self, random: SampleRandom, sizes: Tensor) -> Params:
        config = self.config
        return {
            "box": random_resized_crop_boxes(random, sizes, config.crop_scale, config.crop_ratio),
            "flip": random.uniform("flip", 1)[:, 0] < config.flip,
        }

    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        config = self.config
        return Geometry(params["box"], params["flip"], config.size, config.interpolation)

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return images
