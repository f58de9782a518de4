"""Small images for evaluators that fine-tune: classes that differ in colour, kept in stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.api import Evaluator, ImageReader, Preprocess, resolve_component
from sslkit.builtin.crop_flip import CropFlip
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import StoredImages
from sslkit.data.splits import Splits
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.host.plugins import load_plugins
from sslkit.nn.compute import Compute

CPU = torch.device("cpu")


class Arrays(ImageReader):
    """Images and labels of arrays; (N, C, H, W)."""

    def __init__(self, pixels: NDArray[np.uint8], labels: Tensor) -> None:
        self.channels = pixels.shape[1]
        self.image_size = pixels.shape[2:]
        self.labels = labels.numpy()
        self._images = pixels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._images[index].transpose(1, 2, 0))

    def fingerprint(self) -> str:
        return "arrays"


def coloured(num: int, seed: int, noise: float) -> tuple[NDArray[np.uint8], Tensor]:
    """Noisy images (num, 3, 8, 8) of 3 classes, and their labels."""
    labels = torch.arange(num) % 3
    generator = torch.Generator().manual_seed(seed)
    base = 0.4 + 0.2 * torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 8, 8)
    images = base + noise * torch.randn(num, 3, 8, 8, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), labels


class Network(nn.Module):
    """Two convolutions; drop-out, so that library randomness matters."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.stem(images)).mean(dim=(2, 3))


def projection() -> list[nn.Module]:
    torch.manual_seed(7)
    return [
        nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 4, bias=False)),
    ]


@dataclass(frozen=True)
class Study:
    """Two stores and the suites on them."""

    train: CachedSplit
    test: CachedSplit
    seed: int = 0

    def suite(self, *protocols: tuple[str, Mapping[str, Any]]) -> EvaluationSuite:
        preprocess = Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.2,) * 3)
        compute = Compute(CPU, "fp32", channels_last=False)
        images = StoredImages(
            Splits(self.train, self.test), preprocess, compute,
            seed=self.seed, augmentation=CropFlip(CropFlip.Config(size=8)),
        )  # fmt: skip
        evaluators = [(name, protocol(name, **fields)) for name, fields in protocols]
        return EvaluationSuite(named_evaluators(evaluators), images, seed=self.seed)


def study(
    num_train: int = 240, num_test: int = 90, *, noise: float = 0.25, shuffled: bool = False,
    seed: int = 0,
) -> Study:  # fmt: skip
    """shuffled: training labels that say nothing, on images that differ too much to fall into a
    few clusters, each of which would be right or wrong as a whole."""
    noise = 8.0 if shuffled else noise
    pixels, labels = coloured(num_train, 0, noise)
    if shuffled:
        labels = labels[torch.randperm(num_train, generator=torch.Generator().manual_seed(3))]

    def store(pixels: NDArray[np.uint8], labels: Tensor) -> CachedSplit:
        reader = Arrays(pixels, labels)
        return CachedSplit(reader, max_corrupt_fraction=0.0, seed=0, num_threads=1)

    return Study(store(pixels, labels), store(*coloured(num_test, 1, noise)), seed)


def protocol(name: str, **fields: Any) -> Evaluator:
    """An evaluator as a recipe would make it."""
    registry = load_plugins().registry
    found: Evaluator = resolve_component(registry, "evaluator", {"name": name, **fields}).build()
    return found
