"""Data sources, the readers of their splits, and the batch that a method sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt
from torch import Tensor

from sslkit.deprecation import warn_of_old
from sslkit.nn.boxes import Boxes
from sslkit.randomness import SampleRandom

from .component import Component, ComponentConfig
from .samples import SampleSpec


class UnreadableImageError(Exception):
    """Raised by `SplitReader.read` for a sample that is damaged and will stay so."""


IGNORED_PIXEL = 255
"""The value of `HasMasks.mask` where a pixel belongs to no class and counts nowhere."""


class SplitReader(ABC):
    """One split of a data set: samples that are read by their position, and what is known of them.

    Samples that are no images derive from this class, images from `ImageReader`; what there is
    beside the pixels is said by deriving from `HasMasks`, `HasBoxes` or `HasEncoded` as well.

    Who calls what: `read`, and the methods of the abilities, are called from several threads at
    once, in any order and more than once for a sample; they give the same each time. Attributes
    are read in the main thread, after `open`. What `read` gives may be kept and is written to
    unless it is read-only. The length is fixed; a stream, which has none, is a `StreamReader`.
    What stands between a source and the loader is the sampler.
    """

    labels: NDArray[np.int64] | None = None
    """(N,) classes, -1 where a sample has none; or None. With `class_names` they are positions
    among these; without, any whole numbers from 0, and the classes are the values that occur."""
    class_names: Sequence[str] | None = None
    notes: Sequence[str] = ()
    """What a person should know of how the split was opened, such as files that are not read: a
    sentence each, shown before the run starts."""
    samples: NDArray[Any] | None = None
    """(N, *sample.shape), channels first, where all samples are at hand as one array, such as a
    memory-mapped file; `read` gives the same. It is used where it is: neither copied as a whole nor
    written to."""

    @property
    @abstractmethod
    def sample(self) -> SampleSpec:
        """Shape and type of every sample."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> NDArray[Any]:
        """Sample `index`, as `sample` says. Raises UnreadableImageError for a damaged one and
        OSError for a fault that may pass (it is retried)."""

    def describe(self, index: int) -> str:
        """What to call this sample in a report, for example its path."""
        return f"sample {index}"

    def key(self, index: int) -> str:
        """What tells this sample from the others wherever the data lies and in whatever order it is
        listed, for example its path below the folder; `test_fraction` chooses by it."""
        return str(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when the data changes, and is the same for a copy of it: where
        it lies and when it was written do not matter."""


class HasMasks(ABC):
    """What a reader of images with a class for every pixel derives from as well."""

    mask_classes: Sequence[str]
    """Names of the classes, at most 255."""

    @abstractmethod
    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel of image `index`: (H, W), the size of the image, positions in
        `mask_classes` or IGNORED_PIXEL. Raises DataError for a bad annotation."""


class HasBoxes(ABC):
    """What a reader of images with objects in boxes derives from as well."""

    box_classes: Sequence[str]
    """Names of the classes."""

    @abstractmethod
    def boxes(self, index: int) -> Boxes:
        """The objects of image `index`. Raises DataError for a bad annotation."""


class HasEncoded(ABC):
    """What a reader derives from as well whose samples are stored as files or the like: test images
    are then found among training images without decoding all of them."""

    @abstractmethod
    def encoded_sizes(self) -> NDArray[np.int64] | None:
        """(N,) bytes of each sample as it is stored; None where that is not known after all."""

    @abstractmethod
    def encoded(self, index: int) -> bytes | memoryview:
        """Sample `index` as it is stored. Raises what `read` raises."""


_OLD_ABILITIES: Mapping[type[ABC], Sequence[str]] = {
    HasMasks: ("mask",),
    HasBoxes: ("boxes",),
    HasEncoded: ("encoded", "encoded_sizes"),
}
"""What a reader of interface 1 had by defining these methods and nothing more."""


class ImageReader(SplitReader):
    """One split of a data set of images."""

    channels: int
    image_size: tuple[int, int] | None = None
    """(height, width) where all images have the same, else None."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for ability, members in _OLD_ABILITIES.items():
            if not issubclass(cls, ability) and all(hasattr(cls, name) for name in members):
                defined = " and ".join(members)
                warn_of_old(
                    f"{cls.__name__}.{defined} of an ImageReader alone",
                    f"class {cls.__name__}({ability.__name__}, ImageReader)",
                    in_class=True,
                )
                ability.register(cls)

    @property
    def sample(self) -> SampleSpec:
        """(C, H, W) uint8."""
        return SampleSpec((self.channels, *(self.image_size or (None, None))))

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as (H, W, C) uint8, as image libraries have it. Raises
        UnreadableImageError for a damaged image and OSError for a fault that may pass (it is
        retried)."""

    def describe(self, index: int) -> str:
        return f"image {index}"


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
    """A data source: opens its splits, and what it opens is read by position.

    `open` is called in the main thread, for "train" first, once or more; it is cheap: it reads
    indices and headers, not all samples. Nothing here knows of batches or ranks: in which order
    samples are read is the sampler's. One whose number of samples is not known gives a
    `StreamReader`."""

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
    """V tensors (B, *shape of the view): (B, C, S_v, S_v) in [0, 1] of images."""
    indices: Tensor
    """(B,) int64: position of each image in the training set; those of a stream go on from epoch to
    epoch."""
    random: SampleRandom
    """Keyed randomness for masks and the like."""
    labels: Tensor | None = None
    """(B,) int64, or None. Only methods that declare `requires_labels` may need them."""
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    """What the augmentation produced for a pretext task, each (B, ...)."""
    passing: SampleRandom | None = None
    """The images that pass the networks together with these, on all ranks, in the order of the
    batch; None: there are no others."""
    first_passing: int = 0
    """Where these stand among them."""

    @property
    def passing_together(self) -> SampleRandom:
        """Randomness of all images that pass the networks at the same time as these, on all ranks:
        what is drawn from it is the same on each of them. For what is decided over the batch
        while it is embedded, such as groups."""
        return self.random if self.passing is None else self.passing

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
            passing=None,
            first_passing=0,
        )
