"""Seeded scenes with known factors, for tests and for trying things out without data."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from sslkit.api import DataSource, DataSourceConfig, ImageReader
from sslkit.builtin.sources.shapes import SHAPES, TEXTURES, Scene, render
from sslkit.randomness import SampleRandom

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
"""Eight hues, evenly spaced."""
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
SIZES = ("small", "medium", "large")

FACTORS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "position": POSITIONS,
    "size": SIZES,
}
"""The values of every factor. All are drawn independently and uniformly."""

_VERSION = 1
"""Version of the rendering; goes up whenever the pixels change."""


class Synthetic(DataSource):
    """Scenes of one textured shape on a shaded background. Shape, colour, texture, position and
    size are independent, so that no factor can be told from another."""

    class Config(DataSourceConfig):
        """Fields of the `synthetic` source."""

        num_train: int = Field(default=4000, ge=1, le=10_000_000)
        """Number of training images."""
        num_test: int = Field(default=1000, ge=0, le=10_000_000)
        """Number of test images; 0 for none."""
        size: int = Field(default=32, ge=8, le=8192)
        """Side of the images, pixels."""
        channels: Literal[1, 3] = 3
        """Grey (1) or RGB (3)."""
        label: Literal["shape", "colour", "texture", "position", "size"] = "shape"
        """The factor that serves as label."""
        noise: float = Field(default=0.04, ge=0.0, le=1.0)
        """Half the width of the uniform pixel noise, as a part of the range."""
        data_seed: int = 0
        """Seed of the scenes. Apart from the seed of the run, so that runs share their data."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> SyntheticReader | None:
        """The reader of a split: draws the factors, renders nothing."""
        count = self.config.num_train if split == "train" else self.config.num_test
        return SyntheticReader(self.config, split, count) if count else None


class SyntheticReader(ImageReader):
    """Scene i is a function of (data_seed, split, i) alone and is rendered when it is read."""

    def __init__(self, config: Synthetic.Config, split: str, count: int) -> None:
        self._config = config
        self._split = split
        self._count = count
        random = SampleRandom(config.data_seed, f"synthetic/{split}", 0, torch.arange(count))
        self.factors: dict[str, NDArray[np.int64]] = {
            name: random.integers(name, 1, len(values))[:, 0].numpy()
            for name, values in FACTORS.items()
        }
        """factor -> (N,) positions in `FACTORS`."""
        self._details = random.uniform("details", Scene.NUM_DETAILS).numpy()
        self.channels = config.channels
        self.image_size = (config.size, config.size)
        self.labels = self.factors[config.label]
        self.class_names = FACTORS[config.label]

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> NDArray[np.uint8]:
        scene = Scene(
            shape=SHAPES[self.factors["shape"][index]],
            texture=TEXTURES[self.factors["texture"][index]],
            hue=float(self.factors["colour"][index]) / len(COLOURS),
            column=int(self.factors["position"][index]) % 2,
            row=int(self.factors["position"][index]) // 2,
            scale=int(self.factors["size"][index]),
            details=self._details[index],
        )
        pixels = render(scene, self._config.size, self.channels)
        name = f"{self._config.data_seed}\0{self._split}\0{index}"
        return with_noise(pixels, self._config.noise, name)

    def describe(self, index: int) -> str:
        factors = ", ".join(FACTORS[name][value[index]] for name, value in self.factors.items())
        return f"{self._split} scene {index} ({factors})"

    def fingerprint(self) -> str:
        text = f"{_VERSION}\0{self._split}\0{self._count}\0{self._config.model_dump_json()}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def with_noise(pixels: NDArray[np.float32], amount: float, name: str) -> NDArray[np.uint8]:
    """(H, W, C) in [0, 1] to uint8, with uniform noise from a generator of the image's own."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key).random_raw(pixels.size)
    unit = (words >> 40).astype(np.float32) * np.float32(2.0**-24)
    noise = (unit.reshape(pixels.shape) * 2.0 - 1.0) * amount
    noisy: NDArray[np.uint8] = np.rint((pixels + noise).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return noisy
