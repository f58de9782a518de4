"""The data source `pack`: images that `sslkit pack` has decoded once and for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.api import DataSource, DataSourceConfig, ImageReader
from sslkit.data.pack_format import PackFile, Split, read_pack
from sslkit.errors import DataError
from sslkit.threads import in_order

_COMPARED = 16
"""Blocks, of 4 MB, whose pixels are compared with their checksums for the fingerprint."""


class Pack(DataSource):
    """A pack: images of one size as memory-mapped uint8, written by `sslkit pack`. Nothing is
    decoded and nothing is loaded at the start; the operating system keeps in memory what fits.

    Images that could not be read were replaced when the pack was written, so
    `max_corrupt_fraction` has no effect here."""

    class Config(DataSourceConfig):
        """Fields of the `pack` source."""

        file: Path
        """The pack. It holds the training images and, where the packed source had them, the test
        images."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> PackReader | None:
        """The reader of a split. Checks everything but the pixels; raises RecipeError where there
        is no file, DataError where it is no whole pack."""
        pack = read_pack(self.config.file)
        found = pack.description.splits().get(split)
        return None if found is None else PackReader(pack, split, found)


class PackReader(ImageReader):
    """One split of a pack."""

    samples: NDArray[np.uint8]

    def __init__(self, pack: PackFile, name: str, split: Split) -> None:
        self._pack = pack
        self._name = name
        self._split = split
        self.channels = split.channels
        self.image_size = (split.height, split.width)
        self.labels = pack.labels(split)
        self.class_names = split.class_names
        self.samples = pack.pixels(split)
        self.notes = pack.description.notes
        self.details = {
            "packed_from": pack.description.source,
            "settings": pack.description.settings.model_dump(mode="json"),
            "source_fingerprint": split.source_fingerprint,
            "replaced_images": len(split.unreadable),
        }

    def __len__(self) -> int:
        return self._split.num_images

    def read(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.samples[index].transpose(1, 2, 0)
        return image

    def describe(self, index: int) -> str:
        return f"{self._pack.path} {self._name} image {index}"

    def fingerprint(self) -> str:
        """Covers every pixel, by the checksums, every label, the shape and the class names. Raises
        DataError where the pixels of one of 16 blocks, which are compared, are others."""
        split = self._split
        spread = np.unique(np.linspace(0, split.num_blocks - 1, _COMPARED).astype(np.int64))
        for number, whole in _compared(self._pack, split, 0, spread.tolist()):
            if not whole:
                raise _damaged(self._pack, [_images(split, self._name, number)])
        return self._pack.fingerprint(split)


def verify(
    path: Path, *, num_threads: int, on_progress: Callable[[str, int, int], None] | None = None
) -> PackFile:
    """Compares every pixel of a pack with the checksums.

    `on_progress(split, done, total)` counts images. Raises DataError that names the images of the
    first damaged blocks."""
    pack = read_pack(path)
    damaged: list[str] = []
    for name, split in pack.description.splits().items():
        if on_progress is not None:
            on_progress(name, 0, split.num_images)
        for number, whole in _compared(pack, split, num_threads, range(split.num_blocks)):
            if not whole:
                damaged.append(_images(split, name, number))
            if on_progress is not None:
                on_progress(name, sum(split.block(number)), split.num_images)
    if damaged:
        raise _damaged(pack, damaged)
    return pack


def _images(split: Split, name: str, number: int) -> str:
    """The images of a block, in words."""
    first, count = split.block(number)
    return f"{name} {first} to {first + count - 1}"


def _damaged(pack: PackFile, images: Sequence[str]) -> DataError:
    """images: those of each damaged block."""
    blocks = sum(split.num_blocks for split in pack.description.splits().values())
    shown = ", ".join(images[:5]) + (", ..." if len(images) > 5 else "")
    return DataError(
        f"{pack.path}: {len(images)} of {blocks} blocks do not match their checksum (images "
        f"{shown}); copy or pack it again"
    )


def _compared(
    pack: PackFile, split: Split, num_threads: int, numbers: Sequence[int]
) -> Iterator[tuple[int, bool]]:
    """(number, whether it is whole) of these blocks."""
    compared = in_order(partial(pack.is_whole, split), numbers, num_threads=num_threads)
    try:
        with closing(compared):
            yield from zip(numbers, compared, strict=True)
    except OSError as error:
        raise DataError(f"{pack.path}: cannot be read ({error.strerror or error})") from error
