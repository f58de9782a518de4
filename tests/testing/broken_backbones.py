"""Backbones with one fault each, as people make them, and a sound one that they differ from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sslkit.api import (
    Backbone,
    ComponentConfig,
    FeatureStage,
    Preprocess,
    StartingWeights,
    TimmModel,
)
from sslkit.nn import safetensors_file

WIDTH = 12


class Sound(Backbone):
    """A convolution, BatchNorm, pooling and a layer: nothing is wrong with it."""

    class Config(ComponentConfig):
        weights: Path | None = None
        """Start from this file."""

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.conv = nn.Conv2d(channels, 8, 4, stride=4)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, WIDTH)
        self.num_features = WIDTH
        self.feature_stages = (FeatureStage("conv", 8, 4),)
        statistics = (0.5,) * channels
        self.preprocess = Preprocess(image_size, image_size, "bilinear", statistics, statistics)
        self.finish()
        if config.weights is not None:
            self.import_state(safetensors_file.load(config.weights))

    def finish(self) -> None:
        """What others add before weights are loaded."""

    def maps(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv((images - 0.5) / 0.5)))

    def forward(self, images: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.maps(images), 4)
        features: Tensor = self.fc(pooled.flatten(1))
        return features

    def feature_maps(self, images: Tensor, stages: Any = (-1,)) -> list[Tensor]:
        return [self.maps(images) for _ in stages]

    @classmethod
    def starting_weights(cls, config: Any) -> StartingWeights | None:
        return config.weights and StartingWeights(str(config.weights), config.weights)

    @classmethod
    def without_weights(cls, config: Any) -> Any:
        return config.model_copy(update={"weights": None})

    @classmethod
    def from_weights(cls, block: Mapping[str, Any], weights: Path) -> Mapping[str, Any] | None:
        return {**block, "weights": str(weights)}


class Narrower(Sound):
    """States the width of another layer."""

    def finish(self) -> None:
        self.num_features = WIDTH + 1


class FromNumpy(Sound):
    """Initialises with numpy."""

    def finish(self) -> None:
        drawn = np.random.randn(*self.fc.weight.shape)  # noqa: NPY002
        self.fc.weight.data = torch.from_numpy(drawn).float()


class NumpyNoise(Sound):
    """Adds numpy's noise, in training and in evaluation."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        noise = np.random.randn(*features.shape)  # noqa: NPY002
        return features + torch.from_numpy(noise).float()


class PartlyTrained(Sound):
    """Starts half of its weights from published ones, whatever it is asked for."""

    def finish(self) -> None:
        published = torch.Generator().manual_seed(1)
        nn.init.normal_(self.fc.weight[:6].detach(), generator=published)


class GivesMaps(Sound):
    """Gives the features of every position."""

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).flatten(2).transpose(1, 2)


class Unseeded(Sound):
    """Initialises with a generator of its own, which goes on from one to the next."""

    count: ClassVar[Any] = itertools.count()

    def finish(self) -> None:
        own = torch.Generator().manual_seed(next(self.count))
        nn.init.normal_(self.fc.weight, generator=own)


class TrainedAsUntrained(Sound):
    """Starts from published weights, whatever it is asked for."""

    def finish(self) -> None:
        published = torch.Generator().manual_seed(1)
        nn.init.normal_(self.fc.weight, generator=published)


class Idle(Sound):
    """Has a layer that it does not use."""

    def finish(self) -> None:
        self.classifier = nn.Linear(WIDTH, 10)


class PlainAttribute(Sound):
    """Keeps a random projection as a plain attribute."""

    def finish(self) -> None:
        self.projection = torch.randn(WIDTH, WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) @ self.projection


class BoundToTheFirst(Sound):
    """Holds a function that holds the first instance."""

    def finish(self) -> None:
        self.last = lambda pooled: self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.maps(images), 4)
        features: Tensor = self.last(pooled.flatten(1))
        return features


class DropoutAlways(Sound):
    """Drops in evaluation too."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(super().forward(images), 0.1)


class TrainsAlways(Sound):
    """Leaves BatchNorm in training mode."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.bn.train()
        return self


class Centred(Sound):
    """Takes the mean of the batch away, in evaluation too."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        return features - 0.5 * features.mean(dim=0)


class InPlace(Sound):
    """Normalises the images where they are."""

    def maps(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(images.sub_(0.5).div_(0.5))))

    def feature_maps(self, images: Tensor, stages: Any = (-1,)) -> list[Tensor]:
        return [self.maps(images.clone()) for _ in stages]


class Offset(Sound):
    """Adds a large number in whatever precision there is, and takes it away again."""

    def forward(self, images: Tensor) -> Tensor:
        return (super().forward(images) + 300.0) - 300.0


class NoDeviation(Sound):
    """States a deviation of zero."""

    def finish(self) -> None:
        done = self.preprocess
        self.preprocess = Preprocess(done.size, done.resize, "bilinear", done.mean, (0.0,) * 3)


class OfThreeChannels(Sound):
    """Takes no note of the number of channels."""

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config, channels=3, image_size=image_size)


class Viewed(Sound):
    """Takes for granted how images lie in memory."""

    def maps(self, images: Tensor) -> Tensor:
        flat = (images - 0.5).view(len(images), -1)
        return functional.relu(self.bn(self.conv(2.0 * flat.view(images.shape))))


class ForgottenGroup(Sound):
    """Leaves a layer out of its groups."""

    def depth_groups(self) -> Any:
        return super().depth_groups()[:-1]


class OtherStride(Sound):
    """States the stride of another layer."""

    def finish(self) -> None:
        self.feature_stages = (FeatureStage("conv", 8, 2),)


class LosesABuffer(Sound):
    """Exports the parameters alone."""

    def export_state(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.named_parameters()}

    def import_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(state), strict=False)


class SilentStart(Sound):
    """Does not say that it starts from a file."""

    @classmethod
    def starting_weights(cls, config: Any) -> StartingWeights | None:
        return None


class KnowsEveryName(Sound):
    """Has published weights for any name."""

    @classmethod
    def published(cls, model: str) -> Mapping[str, Any] | None:
        return {}


class LargerThanItsWeights(Sound):
    """Computes a table that is far larger than its weights."""

    def finish(self) -> None:
        self.register_buffer("table", torch.zeros(1 << 25, dtype=torch.uint8), persistent=False)


class AnotherModelOfTimm(Sound):
    """Names a model of timm that its weights are not of."""

    def timm_model(self) -> TimmModel:
        return TimmModel("test_resnet", {})


BROKEN: dict[type[Backbone], str] = {
    Narrower: "gives-the-stated-width",
    FromNumpy: "no-random-numbers-of-numpy-or-python",
    NumpyNoise: "no-random-numbers-of-numpy-or-python",
    PartlyTrained: "untrained-is-random",
    GivesMaps: "gives-the-stated-width",
    Unseeded: "the-seed-decides-its-weights",
    TrainedAsUntrained: "untrained-is-random",
    Idle: "gradients-reach-every-parameter",
    PlainAttribute: "state-is-complete",
    BoundToTheFirst: "instances-are-independent",
    DropoutAlways: "evaluation-repeats",
    TrainsAlways: "evaluation-changes-nothing",
    Centred: "evaluation-treats-samples-alone",
    InPlace: "what-it-takes-is-left-alone",
    Offset: "half-precision-is-safe",
    NoDeviation: "says-how-images-are-prepared",
    OfThreeChannels: "takes-images-of-other-channels",
    Viewed: "memory-layout-changes-nothing",
    ForgottenGroup: "depth-groups-hold-every-parameter",
    OtherStride: "feature-maps-are-as-stated",
    LosesABuffer: "what-is-exported-is-complete",
    KnowsEveryName: "what-it-is-called-is-text",
    SilentStart: "starts-from-a-file-and-without",
}
"""Class -> the one law that it breaks."""
BROKEN_WHERE_INSTALLED: dict[type[Backbone], str] = {
    LargerThanItsWeights: "loads-from-the-file-of-a-run",
    AnotherModelOfTimm: "exports-are-faithful",
}
"""Those that are seen where a plugin registers them."""
