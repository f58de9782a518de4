"""Views of series: crop, time reversal, amplitude, offset and jitter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from sslkit.api import (
    Augmentation,
    ComponentConfig,
    FractionRange,
    Params,
    PositiveRange,
    RunFacts,
    ViewSpec,
)
from sslkit.randomness import SampleRandom

from .crop_and_noise import crop_resample, keyed_normal


class SeriesViews(Augmentation):
    """A random part of each series, resampled to one length, with another amplitude, another offset
    and Gaussian noise. Every choice is made for each sample and each view by its key."""

    class Config(ComponentConfig):
        length: PositiveInt
        """Values of a view."""
        num_views: PositiveInt = 2
        """Views of each series."""
        crop_scale: FractionRange = (0.5, 1.0)
        """Range of the part that is cut out, as a fraction of the length, uniform."""
        flip: float = Field(default=0.0, ge=0.0, le=1.0)
        """Probability of reversing a view in time. Only for series without an arrow of time: a
        sawtooth and an electrocardiogram have one."""
        amplitude: PositiveRange = (0.67, 1.5)
        """Range of the factor of all values, log-uniform; [1, 1] leaves them."""
        offset: float = Field(default=0.3, ge=0.0)
        """Added to all values of a view: uniform in plus or minus this, in the unit of the series.
        """
        jitter: float = Field(default=0.1, ge=0.0)
        """Standard deviation of the Gaussian noise added to each value, in the unit of the series.
        """

        @model_validator(mode="after")
        def _check_ranges(self) -> Self:
            return self

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        sample = facts.sample
        if len(sample.shape) != 2 or not sample.torch_dtype.is_floating_point:
            yield (
                "",
                f"makes views of series, channels x length of floating-point values, and the "
                f"samples are {sample}; choose another augmentation or data source",
            )

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec((self.config.length,)),) * self.config.num_views

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        return [
            self._draw(random.substream("view", view), sizes[:, 0])
            for view in range(self.config.num_views)
        ]

    def _draw(self, random: SampleRandom, lengths: Tensor) -> Params:
        config = self.config
        low, high = (math.log(limit) for limit in config.amplitude)
        part = random.uniform("crop", 1, *config.crop_scale)[:, 0]
        width = (part * lengths).round().long().clamp_min(1)
        free = lengths - width + 1
        start = (random.uniform("start", 1)[:, 0].double() * free).long()
        return {
            "start": start,
            "width": width,
            "flip": random.uniform("flip", 1)[:, 0] < config.flip,
            "amplitude": torch.exp(random.uniform("amplitude", 1, low, high).double()).float(),
            "offset": random.uniform("offset", 1, -config.offset, config.offset),
            "noise": random.bits("noise", 2),
        }

    def make(self, view: int, samples: Tensor, params: Params) -> Tensor:
        config = self.config
        cut = crop_resample(
            samples.float(), params["start"], params["width"], params["flip"], config.length
        )
        values = cut * params["amplitude"][:, None] + params["offset"][:, None]
        if config.jitter == 0.0:
            return values
        noise = keyed_normal(params["noise"], values[0].numel())
        return values + config.jitter * noise.view_as(values)
