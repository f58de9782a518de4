"""Data sources, the readers of their splits, and the batch that a method sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    NonNegativeInt,
)
from torch import Tensor

from sslkit.errors import PluginError
from sslkit.randomness import SampleRandom

if TYPE_CHECKING:
    pass
from sslkit.nn.boxes import Boxes

from .component import Component, ComponentConfig


class UnreadableImageError(Exception):
    """Raised by `SplitReader.read` for an image that is damaged and will stay so."""


IGNORED_PIXEL = 255
"""The value of `SplitReader.mask` where a pixel belongs to no class and counts nowhere."""


class SplitReader(ABC):
    """One split of a data set. `read`, `mask` and `boxes` are called from several threads at
    once."""

    channels: int
    image_size: tuple[int, int] | None = None
    """(height, width) where all images have the same, else None."""
    labels: NDArray[np.int64] | None = None
    """(N,) classes, -1 where an image has none; or None. With `class_names` they are positions
    among these; without, any whole numbers from 0, and the classes are the values that occur."""
    class_names: Sequence[str] | None = None
    notes: Sequence[str] = ()
    """What a person should know of how the split was opened, such as files that are not read: a
    sentence each, shown before the run starts."""
    pixels: NDArray[np.uint8] | None = None
    """(N, C, H, W), where all images are at hand as one array, such as a memory-mapped file; `read`
    gives the same. It is used where it is: neither copied as a whole nor written to."""
    mask_classes: Sequence[str] | None = None
    """Names of the classes of `mask`, at most 255; None where there are no masks."""
    box_classes: Sequence[str] | None = None
    """Names of the classes of `boxes`; None where there are no boxes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as (H, W, C) uint8. Raises UnreadableImageError for a damaged image and
        OSError for a fault that may pass (it is retried)."""

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel of image `index`: (H, W), the size of the image, positions in
        `mask_classes` or IGNORED_PIXEL. Raises DataError for a bad annotation, PluginError where
        there are no masks."""
        raise PluginError(
            f"{type(self).__name__} has no masks; a source with them defines mask(index)"
        )

    def boxes(self, index: int) -> Boxes:
        """The objects of image `index`. Raises DataError for a bad annotation, PluginError where
        there are no boxes."""
        raise PluginError(
            f"{type(self).__name__} has no boxes; a source with them defines boxes(index)"
        )

    def describe(self, index: int) -> str:
        """What to call this image in a report, for example its path."""
        return f"image {index}"

    def encoded_sizes(self) -> NDArray[np.int64] | None:
        """(N,) bytes of each image as it is stored, where `encoded` gives that; else None. Test
        images are then found among training images without decoding all of them."""
        return None

    def encoded(self, index: int) -> bytes | memoryview:
        """Image `index` as it is stored. Raises what `read` raises."""
        raise PluginError(f"{type(self).__name__} has no encoded images")

    def key(self, index: int) -> str:
        """What tells this image from the others wherever the data lies and in whatever order it is
        listed, for example its path below the folder; `test_fraction` chooses by it."""
        return str(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when the data changes."""


class DataSourceConfig(ComponentConfig):
    """Fields that every data source has."""

    max_corrupt_fraction: float = Field(default=0.001, ge=0.0, le=1.0)
    """Above this fraction of unreadable images the run stops; below it, each is replaced."""
    test_fraction: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Keeps this part of each class for testing, chosen by a hash of `test_seed` and the image's
    name; for sources with labels that have no test split. The same images for every seed of the
    run, so that repetitions are measured on the same ones."""
    test_seed: NonNegativeInt = 0
    """Another one keeps other images for testing. Without effect unless `test_fraction` is set."""


class DataSource(Component, ABC):
    """A data source. `open` is cheap: it reads indices and headers, not all pixels."""

    kind = "dataset"
    Config: ClassVar[type[ComponentConfig]] = DataSourceConfig
    divides_itself: ClassVar[bool] = False
    """True: `open` follows the field `test_fraction` by itself."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def open(self, split: Literal["train", "test"]) -> SplitReader | None:
        """The reader of a split; None where there is no test split. Raises DataError."""


@dataclass(frozen=True)
class Batch:
    """What a method sees of one step (or of one micro-batch of it)."""

    views: tuple[Tensor, ...]
    """V tensors (B, C, S_v, S_v), float, values in [0, 1]."""
    indices: Tensor
    """(B,) int64: position of each image in the training set."""
    random: SampleRandom
    """Keyed randomness for masks and the like."""
    labels: Tensor | None = None
    """(B,) int64, or None. Only methods that declare `requires_labels` may need them."""
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    """What the augmentation produced for a pretext task, each (B, ...)."""

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, rows: slice) -> Batch:
        """A part of the batch."""
        return replace(
            self,
            views=tuple(view[rows] for view in self.views),
            indices=self.indices[rows],
            random=self.random.select(rows),
            labels=None if self.labels is None else self.labels[rows],
            targets={name: value[rows] for name, value in self.targets.items()},
        )
