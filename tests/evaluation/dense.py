"""What the tests of the dense evaluators share: data, encoders whose maps are known, subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Boxes,
    Component,
    DataSource,
    DataSourceConfig,
    Evaluation,
    FeatureStage,
    HasBoxes,
    HasMasks,
    ImageReader,
    OwnDataEvaluator,
    OwnDataInput,
    Preprocess,
    Slot,
    resolve_component,
)
from sslkit.host.plugins import load_plugins


def protocol(name: str, data: dict[str, Any] | Slot[Any], **fields: Any) -> Any:
    """An evaluator as a recipe would make it."""
    return resolve_component(
        load_plugins().registry, "evaluator", {"name": name, "data": data, **fields}
    ).build()


def measure(evaluator: OwnDataEvaluator, encoder: nn.Module, seed: int = 0) -> Evaluation:
    """What it finds of an encoder."""
    return evaluator.evaluate(OwnDataInput("untrained", encoder, seed, torch.device("cpu")))


def slot(cls: type[Component], config: Any = None) -> Slot[Any]:
    """A slot of a class that no plugin registers."""
    return Slot(cls, cls.__name__.lower(), config or cls.Config(), "tests", "0")


class Averages(Backbone):
    """The mean colour of every patch, and its square, as features."""

    def __init__(self, size: int = 32, stride: int = 4) -> None:
        super().__init__(None)
        self.stride = stride
        self.num_features = 6
        self.preprocess = Preprocess(size, size, "bilinear", (0.0,) * 3, (1.0,) * 3)
        self.feature_stages = (FeatureStage("patches", 6, stride),)
        self.scale = nn.Parameter(torch.ones(()))

    def feature_maps(self, images: Tensor, stages: Sequence[int] = (-1,)) -> list[Tensor]:
        means = F.avg_pool2d(images, self.stride) * self.scale
        return [torch.cat([means, means.square()], dim=1) for _ in stages]

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_maps(images)[0].mean(dim=(2, 3))


class Changed(ImageReader, HasMasks, HasBoxes):
    """A reader whose masks are other ones."""

    def __init__(
        self, reader: ImageReader, masks: Callable[[ImageReader, int], NDArray[np.uint8]]
    ) -> None:
        self._reader = reader
        self._masks = masks
        self.channels = reader.channels
        self.image_size = reader.image_size
        self.mask_classes = reader.mask_classes
        self.box_classes = reader.box_classes

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._reader.read(index)

    def mask(self, index: int) -> NDArray[np.uint8]:
        return self._masks(self._reader, index)

    def boxes(self, index: int) -> Boxes:
        return self._reader.boxes(index)

    def fingerprint(self) -> str:
        return self._reader.fingerprint()


def changed(
    source: dict[str, Any], masks: Callable[[ImageReader, int], NDArray[np.uint8]]
) -> Slot[Any]:
    """A source whose masks are changed, in both splits."""

    class Source(DataSource):
        Config = DataSourceConfig

        def open(self, split: Literal["train", "test"]) -> ImageReader | None:
            given = resolve_component(load_plugins().registry, "dataset", source).build()
            return Changed(given.open(split), masks)

    return slot(Source)
