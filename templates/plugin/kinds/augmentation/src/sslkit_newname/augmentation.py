"""Crop, mirror, change the gamma, cover a square.

Shapes: B samples, C channels, S pixels of a side of a view.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from sslkit.api import (
    ComponentConfig,
    FractionRange,
    Geometry,
    ImageAugmentation,
    Params,
    ViewSpec,
)
from sslkit.nn.image import random_resized_crop_boxes
from sslkit.randomness import SampleRandom
from torch import Tensor


class NewName(ImageAugmentation):
    """Views of a random part of the image, mirrored or not, with a random gamma and a random square
    covered in grey."""

    class Config(ComponentConfig):
        size: PositiveInt = 32
        """Side of the views, pixels."""
        num_views: PositiveInt = 2
        """Views of each image."""
        crop_scale: FractionRange = (0.4, 1.0)
        """Range of the crop's area, as a fraction of the image's."""
        flip: float = Field(default=0.5, ge=0.0, le=1.0)
        """Probability of mirroring left-right."""
        gamma: float = Field(default=2.0, ge=1.0)
        """Gamma is log-uniform between 1 / gamma and gamma; 1 leaves pixels as they are."""
        covered: float = Field(default=0.25, ge=0.0, le=1.0)
        """Side of the covered square, as a fraction of the view's; 0 covers nothing."""

    config: Config

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec(self.config.size),) * self.config.num_views

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        views = range(self.config.num_views)
        return [self._draw_view(random.substream("view", view), sizes) for view in views]

    def _draw_view(self, random: SampleRandom, sizes: Tensor) -> Params:
        """Each tensor has one row for each sample; every purpose draws under a name of its own."""
        config = self.config
        # In float64, so that no rounding depends on where in the batch a sample stands.
        exponent = random.uniform("gamma", 1, -1.0, 1.0)[:, 0].double()
        return {
            "box": random_resized_crop_boxes(random, sizes, config.crop_scale),  # (B, 4)
            "flip": random.uniform("flip", 1)[:, 0] < config.flip,  # (B,) bool
            "gamma": (config.gamma**exponent).float(),  # (B,)
            "corner": random.uniform("corner", 2) * (1.0 - config.covered),  # (B, 2) top, left
        }

    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        return Geometry(params["box"], params["flip"], self.config.size)

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        images = images ** params["gamma"].view(-1, 1, 1, 1)  # (B, C, S, S), still in [0, 1]
        if self.config.covered == 0.0:
            return images
        top, left = params["corner"].unbind(dim=1)
        rows = self._inside(top, images.shape[2])[:, None, :, None]
        columns = self._inside(left, images.shape[3])[:, None, None, :]
        return torch.where(rows & columns, 0.5, images)

    def _inside(self, start: Tensor, length: int) -> Tensor:
        """(B, length) bool: whether the centre of a pixel lies in the covered part of its axis."""
        centres = (torch.arange(length, device=start.device) + 0.5) / length
        distance = centres[None, :] - start[:, None]
        return (distance >= 0.0) & (distance < self.config.covered)
