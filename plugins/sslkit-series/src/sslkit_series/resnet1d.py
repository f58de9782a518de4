"""A small residual network for series."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from sslkit.api import Backbone, ComponentConfig


class ResNet1d(Backbone):
    """A ResNet of one-dimensional convolutions: (B, C, L) float32 to (B, num_features), for any L.

    A stem, stages of residual blocks with twice the channels and half the length each, and the mean
    over time. It takes series as they are: the BatchNorm after the first convolution, which has no
    bias, makes features independent of the unit of the series.
    Source: He et al. 2016, arXiv 1512.03385 (the basic block); Wang et al. 2017, arXiv 1611.06455
    (for series).
    """

    takes_images = False

    class Config(ComponentConfig):
        width: PositiveInt = 32
        """Channels of the first stage; each further one has twice as many."""
        blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=6)] = (1, 1, 1)
        """Residual blocks of each stage."""
        kernel_size: PositiveInt = 5
        """Values that a convolution sees, odd."""

        @field_validator("kernel_size")
        @classmethod
        def _check_odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ValueError(f"{value} is even: set an odd number")
            return value

    config: Config

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        """shape: (C, L) of the longest view."""
        super().__init__(config)
        width, kernel = config.width, config.kernel_size
        layers: list[nn.Module] = [_conv(shape[0], width, kernel), nn.BatchNorm1d(width), nn.ReLU()]
        channels = width
        for stage, count in enumerate(config.blocks):
            out = width * 2**stage
            for block in range(count):
                stride = 2 if block == 0 else 1
                layers.append(BasicBlock(channels, out, kernel, stride))
                channels = out
        self.layers = nn.Sequential(*layers)
        self.num_features = channels

    def forward(self, series: Tensor) -> Tensor:
        features: Tensor = self.layers(series)
        return features.mean(dim=2)


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm, added to their input."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, out, kernel, stride),
            nn.BatchNorm1d(out),
            nn.ReLU(),
            _conv(out, out, kernel),
            nn.BatchNorm1d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm1d(out))

    def forward(self, series: Tensor) -> Tensor:
        made: Any = self.body(series) + self.shortcut(series)
        return nn.functional.relu(made)


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv1d:
    conv = nn.Conv1d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
