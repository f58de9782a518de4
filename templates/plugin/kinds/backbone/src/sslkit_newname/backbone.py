"""A small residual network (He et al. 2016, arXiv 1512.03385), for small images.

Shapes: B images, C channels, S pixels of a side, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import PositiveInt
from sslkit.api import Backbone, ComponentConfig, FeatureStage, Preprocess, RunFacts
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.5, 0.5
"""What maps values in [0, 1] to [-1, 1]."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the side, or divides it by `stride`, and BatchNorm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Stage(nn.Module):
    """Two convolutions around a shortcut: (B, inputs, S, S) to (B, outputs, S / 2, S / 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride=2)
        self.second = convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class NewName(Backbone):
    """A convolution, residual stages, and the mean over positions: (B, C, S, S) to (B, F)."""

    class Config(ComponentConfig):
        width: PositiveInt = 32
        """Channels of the first convolution; each stage doubles them."""
        stages: PositiveInt = 3
        """Stages, each of which halves the side. F is width * 2 ** stages."""

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        side = min((min(view.sides) for view in facts.views), default=None)
        if side is not None and side < 2**config.stages:
            yield "stages", f"{config.stages} halvings leave nothing of a view of {side} pixels"

    def __init__(self, config: Config, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        widths = [config.width * 2**level for level in range(config.stages + 1)]
        self.stem = convolution(channels, config.width, 3)
        self.stages = nn.ModuleList(map(Stage, widths[:-1], widths[1:]))
        self.num_features = widths[-1]
        self.feature_stages = [
            FeatureStage(name=f"stage{level}", channels=width, stride=2**level)
            for level, width in enumerate(widths[1:], start=1)
        ]
        self.preprocess = Preprocess(
            size=image_size,
            resize=image_size,
            interpolation="bilinear",
            mean=(MEAN,) * channels,
            std=(STD,) * channels,
        )

    def forward(self, images: Tensor) -> Tensor:
        return self._maps(images)[-1].mean(dim=(2, 3))

    def feature_maps(self, images: Tensor, stages: Sequence[int] = (-1,)) -> list[Tensor]:
        maps = self._maps(images)
        return [maps[stage] for stage in stages]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """What each stage makes of images in [0, 1]: the backbone normalises by itself."""
        x = F.relu(self.stem((images - MEAN) / STD))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
