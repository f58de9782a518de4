"""A decoder of convolutions: from the features of an image back to its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor, nn

from sslkit.api import ComponentConfig, Head

_FIRST_SIDE = 4
"""Side of the first map, at most."""
_LEAST_WIDTH = 16


class ConvDecoder(Head):
    """(B, in_dim) to (B, channels * size * size): the pixels of a square image, channel by channel
    and row by row. A linear layer makes a map of at most 4 x 4; each further layer doubles its side
    and halves its width (nearest neighbour, convolution of 3 x 3, BatchNorm, ReLU), down to 16; the
    last is a convolution without an activation."""

    class Config(ComponentConfig):
        size: PositiveInt
        """Side of the image, pixels."""
        channels: PositiveInt = 3
        """Channels of the image."""
        width: PositiveInt = 256
        """Channels of the first map."""

    config: Config

    def __init__(self, config: Config, *, in_dim: int) -> None:
        super().__init__(config)
        self.out_dim = config.channels * config.size**2
        sides = _sides(config.size)
        widths = [max(config.width >> step, _LEAST_WIDTH) for step in range(len(sides))]
        first, *steps = zip(pairwise([in_dim, *widths]), sides, strict=True)
        self.layers = nn.Sequential(
            _first(*first[0], first[1]),
            *(_step(*width, side) for width, side in steps),
            nn.Sequential(nn.Conv2d(widths[-1], config.channels, 3, padding=1), nn.Flatten()),
        )

    def forward(self, features: Tensor) -> Tensor:
        pixels: Tensor = self.layers(features)
        return pixels

    def as_layers(self) -> Sequence[nn.Module]:
        return tuple(self.layers)


def _sides(size: int) -> list[int]:
    """The sides of the maps, each half of the next, rounded up."""
    sides = [size]
    while sides[0] > _FIRST_SIDE:
        sides.insert(0, (sides[0] + 1) // 2)
    return sides


def _first(in_dim: int, width: int, side: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(in_dim, width * side * side, bias=False),
        nn.Unflatten(1, (width, side, side)),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _step(in_dim: int, width: int, side: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(size=side),
        nn.Conv2d(in_dim, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
