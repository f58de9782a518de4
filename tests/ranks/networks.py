"""A network with BatchNorm of few layers: a message for each of them in each pass is most of what a
step of several processes on one core costs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sslkit.api import Backbone, ComponentConfig, Preprocess


class ConvNet(Backbone):
    """Convolution, BatchNorm, ReLU, a residual convolution, mean pooling."""

    num_features = 12
    block: nn.Module
    shortcut: nn.Module

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.preprocess = Preprocess(image_size, image_size, "bilinear", (0.5,) * 3, (1.0,) * 3)
        width = self.num_features
        self.stem = nn.Sequential(_convolution(channels, width), nn.BatchNorm2d(width), nn.ReLU())
        self.block = _convolution(width, width)
        self.shortcut = nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) to (B, 12)."""
        x = self.stem(images - 0.5)
        features: Tensor = (self.block(x) + self.shortcut(x)).relu().mean(dim=(2, 3))
        return features


class BlockNet(ConvNet):
    """Two blocks with BatchNorm, as in a ResNet, in place of the second convolution."""

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config, channels=channels, image_size=image_size)
        self.block = nn.Sequential(_Block(self.num_features), _Block(self.num_features))
        self.shortcut = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """In the numbers of its weights."""
        return super().forward(images.to(next(self.stem.parameters()).dtype))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.norm(self.convolution(x)).relu()
        return found


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
