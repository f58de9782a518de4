"""What a sample is: the shape and type that a reader gives, and those of the views made of it.

A data source, an augmentation and a backbone agree through these two classes and nothing else.
Images are the case with a fast path; series (C, L), volumes or tokens (L,) go the general way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from sslkit.errors import PluginError


@dataclass(frozen=True)
class SampleSpec:
    """The samples of a split, as training holds them: channels first."""

    shape: tuple[int | None, ...]
    """(C, *sides), or one side alone for samples without channels, such as (L,) tokens; None for a
    side that differs from sample to sample, which only images may have."""
    dtype: str = "uint8"
    """Name of the type of its values, the same in numpy and torch: `uint8`, `float32`, ..."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type, as torch has it. Raises PluginError."""
        return torch_dtype(self.dtype)

    @property
    def channels(self) -> int:
        """Length of the first axis; 0 where a sample has one side alone."""
        return (self.shape[0] or 0) if len(self.shape) > 1 else 0

    @property
    def sides(self) -> tuple[int, ...] | None:
        """Lengths of the axes after the channels; None where samples differ in them."""
        known = tuple(side for side in self.shape if side is not None)
        if len(known) < len(self.shape):
            return None
        return known[1:] if len(known) > 1 else known

    @property
    def is_image(self) -> bool:
        """Whether these are pixels: (C, H, W) uint8, which stand for values in [0, 1]."""
        return self.dtype == "uint8" and len(self.shape) == 3

    @property
    def noun(self) -> str:
        """What one is called in what people read; its plural has an s."""
        return "image" if self.is_image else "sample"

    @property
    def raw(self) -> Literal["pixels", "raw"]:
        """Name of the baseline that is the samples themselves, without a network."""
        return "pixels" if self.is_image else "raw"

    def fits(self, shape: Sequence[int], dtype: str) -> bool:
        """Whether a sample of this shape, channels first, and this type is one of these."""
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(side in (None, length) for side, length in zip(self.shape, shape, strict=True))
        )

    def __str__(self) -> str:
        """`1 x 128 float32`, `3 x any x any uint8`."""
        return f"{' x '.join('any' if n is None else str(n) for n in self.shape)} {self.dtype}"


@dataclass(frozen=True)
class ViewSpec:
    """The shape of a view and its part: which views a method treats alike."""

    size: int | tuple[int, ...]
    """A number: the side of a square image, pixels. Else every side after the channels, such as
    (height, width) of another image or (length,) of a series."""
    role: str = "global"
    channels: int | None = None
    """None: as many as the samples have. 0: no axis of channels."""
    dtype: str = "float32"
    """Name of the type of the view's values. Views of images are floating-point, in [0, 1]."""

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides after the channels, (size, size) of a square."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def is_square(self) -> bool:
        """Whether it is a square image, as most backbones of images take."""
        return len(self.sides) == 2 and self.sides[0] == self.sides[1]

    def shape(self, channels: int) -> tuple[int, ...]:
        """The shape of one view, (C, *sides), of samples with so many channels."""
        own = channels if self.channels is None else self.channels
        return (own, *self.sides) if own else self.sides

    def __str__(self) -> str:
        """`32 px` of a square image, `96` of a series, `48 x 64` of anything else."""
        return f"{self.size} px" if isinstance(self.size, int) else " x ".join(map(str, self.size))


def torch_dtype(name: str) -> torch.dtype:
    """The type of torch of this name. Raises PluginError."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise PluginError(
            f"'{name}' is no type of samples or views; valid are the names of torch's types, such "
            "as uint8, float32 or int64"
        )
    return dtype


def largest_view(views: Sequence[ViewSpec], channels: int) -> tuple[int, ...]:
    """The shape of the view with the most values, the first of several."""
    return max((view.shape(channels) for view in views), key=math.prod)
