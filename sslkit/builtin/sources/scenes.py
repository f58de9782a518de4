"""Seeded scenes of several shapes, with masks and boxes, for dense evaluators without data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from sslkit.api import Boxes, DataSource, DataSourceConfig, HasBoxes, HasMasks, ImageReader
from sslkit.builtin.sources.shapes import (
    SHAPES,
    TEXTURES,
    background,
    coverage,
    grid,
    in_channels,
    surface,
)
from sslkit.builtin.sources.synthetic import COLOURS, with_noise
from sslkit.randomness import SampleRandom

FACTORS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}
"""The values of every factor of an object. All are drawn independently and uniformly."""
BACKGROUND = "background"
"""Class 0 of the masks."""

_VERSION = 1
"""Version of the rendering; goes up whenever pixels or annotations change."""
_CELL = 8
"""Least side of a cell, pixels: below it thin shapes cover no pixel."""
_DETAILS = 9
"""Uniform numbers for each object: radius, place (2), turn, surface (5)."""


class Scenes(DataSource):
    """Scenes of several textured shapes on a shaded background, each in a cell of its own, with a
    class for every pixel and a box around every shape. No labels of whole images. Shape, colour and
    texture are independent; `label` says which of them is the class."""

    class Config(DataSourceConfig):
        """Fields of the `scenes` source."""

        num_train: int = Field(default=400, ge=1, le=10_000_000)
        """Number of training images."""
        num_test: int = Field(default=100, ge=0, le=10_000_000)
        """Number of test images; 0 for none."""
        size: int = Field(default=64, ge=16, le=8192)
        """Side of the images, pixels."""
        channels: Literal[1, 3] = 3
        """Grey (1) or RGB (3)."""
        cells: int = Field(default=2, ge=1, le=8)
        """Cells along each side; a cell holds at most one shape."""
        max_objects: PositiveInt = 3
        """An image has one to so many shapes, each number equally often; at most cells x cells."""
        label: Literal["shape", "colour", "texture"] = "shape"
        """The factor that is the class of pixels and boxes. In masks, class 0 is the background."""
        noise: float = Field(default=0.04, ge=0.0, le=1.0)
        """Half the width of the uniform pixel noise, as a part of the range."""
        data_seed: int = 0
        """Seed of the scenes. Apart from the seed of the run, so that runs share their data."""

        @model_validator(mode="after")
        def _objects_fit(self) -> Scenes.Config:
            if self.max_objects > self.cells**2:
                raise ValueError(
                    f"max_objects: {self.max_objects} shapes do not fit into {self.cells} x "
                    f"{self.cells} cells; take at most {self.cells**2}, or more cells"
                )
            if self.size < _CELL * self.cells:
                raise ValueError(
                    f"size: {self.size} pixels leave less than {_CELL} for each of {self.cells} "
                    f"cells; take at least {_CELL * self.cells}, or fewer cells"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> ScenesReader | None:
        """The reader of a split: draws the factors, renders nothing."""
        count = self.config.num_train if split == "train" else self.config.num_test
        return ScenesReader(self.config, split, count) if count else None


@dataclass(frozen=True)
class Drawn:
    """A rendered scene."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    boxes: Boxes


class ScenesReader(ImageReader, HasMasks, HasBoxes):
    """Scene i is a function of (data_seed, split, i) alone and is rendered when it is read."""

    def __init__(self, config: Scenes.Config, split: str, count: int) -> None:
        self._config = config
        self._split = split
        self._count = count
        random = SampleRandom(config.data_seed, f"scenes/{split}", 0, torch.arange(count))
        places = config.cells**2
        self._objects = 1 + random.integers("objects", 1, config.max_objects)[:, 0].numpy()
        self._cells = random.permutation("cells", places).numpy()
        self._factors = {
            name: random.integers(name, places, len(values)).numpy()
            for name, values in FACTORS.items()
        }
        details = random.uniform("details", _DETAILS * places).numpy()
        self._details = details.reshape(count, places, _DETAILS)
        self._background = random.uniform("background", 3).numpy()
        self._drawn = lru_cache(maxsize=8)(self._draw)  # pixels, mask and boxes are read in turn
        self.channels = config.channels
        self.image_size = (config.size, config.size)
        self.box_classes = FACTORS[config.label]
        self.mask_classes = (BACKGROUND, *self.box_classes)

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._drawn(index).pixels

    def mask(self, index: int) -> NDArray[np.uint8]:
        return self._drawn(index).mask

    def boxes(self, index: int) -> Boxes:
        return self._drawn(index).boxes

    def describe(self, index: int) -> str:
        names = self._factors[self._config.label][index, : self._objects[index]]
        classes = FACTORS[self._config.label]
        return f"{self._split} scene {index} ({', '.join(classes[name] for name in names)})"

    def fingerprint(self) -> str:
        text = f"{_VERSION}\0{self._split}\0{self._count}\0{self._config.model_dump_json()}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _draw(self, index: int) -> Drawn:
        size, cells = self._config.size, self._config.cells
        x, y = grid(size)
        pixels = background(x, y, [float(value) for value in self._background[index]])
        mask = np.zeros((size, size), dtype=np.uint8)
        boxes, labels = [], []
        for number in range(self._objects[index]):
            factor = {name: int(values[index, number]) for name, values in self._factors.items()}
            d = [float(value) for value in self._details[index, number]]
            row, column = divmod(int(self._cells[index, number]), cells)
            radius = (0.6 + 0.3 * d[0]) / cells
            free = 1.0 / cells - radius
            centre_x = (2 * column + 1) / cells - 1.0 + (2.0 * d[1] - 1.0) * free
            centre_y = (2 * row + 1) / cells - 1.0 + (2.0 * d[2] - 1.0) * free
            shape = SHAPES[factor["shape"]]
            turn = (d[3] - 0.5) * np.radians(50.0)
            cover = coverage(shape, x - centre_x, y - centre_y, radius, turn, size)
            hue = factor["colour"] / len(COLOURS)
            front = surface(TEXTURES[factor["texture"]], hue, x, y, d[4:])
            pixels = pixels * (1.0 - cover[:, :, None]) + front * cover[:, :, None]
            inside = cover > 0.5
            mask[inside] = 1 + factor[self._config.label]
            boxes.append(bounding_box(inside))
            labels.append(factor[self._config.label])
        name = f"scenes\0{self._config.data_seed}\0{self._split}\0{index}"
        image = with_noise(in_channels(pixels, self.channels), self._config.noise, name)
        none = np.zeros(len(labels), dtype=np.bool_)
        corners = np.array(boxes, dtype=np.float32)
        image.flags.writeable = mask.flags.writeable = False  # they are kept for the next call
        return Drawn(image, mask, Boxes(corners, np.array(labels, dtype=np.int64), none, none))


def bounding_box(inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the True pixels, right and bottom past the last one. There must
    be one."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
