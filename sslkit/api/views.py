"""Augmentations: how the views of a batch are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from sslkit.randomness import SampleRandom

if TYPE_CHECKING:
    pass
from .component import Component, ViewSpec

Params = Mapping[str, Tensor]
"""The random parameters of one view: each tensor is (B, ...), one row per sample."""


@dataclass(frozen=True)
class Geometry:
    """The crop of one view, executed while decoding or on the batch."""

    box: Tensor
    """(B, 4) float32: top, left, height, width in source pixels."""
    flip: Tensor
    """(B,) bool: mirror left-right after resizing."""
    size: int
    """Side of the square result, pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Antialiased when it shrinks."""


class Augmentation(Component, ABC):
    """Makes the views of a batch. Parameters are drawn per sample; pixels are worked on in whole
    batches on the training device."""

    kind = "augmentation"

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    @abstractmethod
    def views(self) -> tuple[ViewSpec, ...]:
        """Size and role of each view."""

    @abstractmethod
    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        """The parameters of each view, on the CPU. sizes: (B, 2) height and width of the images."""

    @abstractmethod
    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        """The crop of a view."""

    @abstractmethod
    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        """Everything after the crop: (B, C, S, S) float in [0, 1] to the same shape and range."""

    def targets(self, params: list[Params]) -> Mapping[str, Tensor]:
        """Labels that the drawn parameters define, for pretext tasks; each (B, ...)."""
        return {}
