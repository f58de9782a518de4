"""Random resized crop and flip alone: the augmentation of classifiers and of masked images."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from sslkit.api import ComponentConfig, Geometry, ImageAugmentation, Params, ViewSpec
from sslkit.nn.image import random_resized_crop_boxes
from sslkit.randomness import SampleRandom


class CropFlip(ImageAugmentation):
    """A random part of the image, resized, and mirrored half of the time: what published linear
    evaluation, fine-tuning and MAE do to training images."""

    class Config(ComponentConfig):
        size: PositiveInt
        """Side of the view, pixels."""
        crop_scale: tuple[float, float] = (0.08, 1.0)
        """Range of the crop's area, as a fraction of the image's."""
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
        """Range of the crop's width / height, log-uniform."""
        flip: float = Field(default=0.5, ge=0.0, le=1.0)
        """Probability of mirroring left-right."""
        interpolation: Literal["bilinear", "bicubic"] = "bicubic"
        """Filter of the resize, antialiased."""
        num_views: PositiveInt = 1
        """Views of each image, each with a crop of its own."""

        @model_validator(mode="after")
        def _check_ranges(self) -> Self:
            for name, most in (("crop_scale", 1.0), ("crop_ratio", None)):
                low, high = getattr(self, name)
                if not 0.0 < low <= high or (most is not None and high > most):
                    valid = "0 < low <= high" + ("" if most is None else f" <= {most:g}")
                    raise ValueError(f"{name}: [{low:g}, {high:g}] is no range: set {valid}")
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
