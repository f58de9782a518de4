"""Images in Parquet files, in the layout of the Hugging Face hub or as plain binary columns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.api import DataSource, DataSourceConfig, HasEncoded, ImageReader, UnreadableImageError
from sslkit.builtin.sources.decoding import decode_image, image_size
from sslkit.builtin.sources.parquet_columns import (
    find_image_column,
    find_label_column,
    labels_of,
    open_shards,
)
from sslkit.builtin.sources.parquet_images import ImageColumn
from sslkit.builtin.sources.paths import common_size, missing
from sslkit.builtin.sources.regular_files import is_regular, shown
from sslkit.builtin.sources.split_names import split_of
from sslkit.errors import RecipeError

_PROBED_IMAGES = 64
IN_MEMORY_BYTES = 8 * 2**30
"""Encoded images up to this size are read into memory; more need `cache`. A constant, never taken
from the machine's state."""


class Parquet(DataSource):
    """Images in Parquet files: a column of encoded images (`struct<bytes, path>`, as the library
    `datasets` writes it, or plain binary) and, where there is one, a column of labels."""

    class Config(DataSourceConfig):
        """Fields of the `parquet` source."""

        train: Path | list[Path]
        """Training images: a file, a list of files, a folder of `*.parquet` files, or a pattern
        such as `data/train-*.parquet`. Shards of a folder or pattern are read in name order. Where
        the names of a folder's files speak of several splits, those of this one are taken."""
        test: Path | list[Path] | None = None
        """Test images, in the same forms."""
        image_column: str | None = None
        """Column that holds the images; null takes the only one that can."""
        label_column: str | None = "auto"
        """Column that holds the labels, integers, strings or booleans; null
        and -1 are images without a label. Without names in the metadata the classes are the values
        that occur. `auto` takes the only ClassLabel
        column of the Hugging Face metadata, else the only column called `label`, `labels`,
        `fine_label`, `class` or `target`; null uses no labels."""
        channels: Literal[1, 3] = 3
        """Images are converted to grey (1) or RGB (3)."""
        cache: Path | None = None
        """Folder for an uncompressed, memory-mapped copy of the images, made at the first use.
        Needed where they take more than 8 GiB; without it they are read into memory."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> ParquetReader | None:
        """The reader of a split. Reads footers, labels and the first row groups.

        Raises RecipeError for paths and columns that do not exist, DataError for damaged files."""
        config = self.config
        given = config.train if split == "train" else config.test
        if given is None:
            return None
        paths = resolve_paths(f"data.{split}", given, split)
        if split == "test":
            self._refuse_training_shards(paths)
        shards = open_shards(paths)
        image_column = find_image_column(shards[0], config.image_column)
        label_column = find_label_column(shards[0], config.label_column, image_column)
        labels, names = labels_of(shards, label_column)
        if split == "test" and label_column is not None:
            train = open_shards(self._train_paths)
            train_column = find_label_column(train[0], config.label_column, image_column)
            train_names = labels_of(train, train_column)[1]
            labels, names = _on_train_classes(labels, names, train_names)
        column = ImageColumn(shards, image_column, config.cache)
        if config.cache is None and column.num_bytes > IN_MEMORY_BYTES:
            raise RecipeError(
                f"data.cache: the images of data.{split} take {column.num_bytes / 2**30:.1f} GiB, "
                f"more than the {IN_MEMORY_BYTES / 2**30:g} GiB that are kept in memory; set "
                "data.cache to a folder with that much space, where they are converted once"
            )
        return ParquetReader(column, config.channels, labels, names, label_column)

    @cached_property
    def _train_paths(self) -> list[Path]:
        return resolve_paths("data.train", self.config.train, "train")

    def _refuse_training_shards(self, paths: Sequence[Path]) -> None:
        train = {os.path.realpath(path) for path in self._train_paths}
        both = [path for path in paths if os.path.realpath(path) in train]
        if both:
            raise RecipeError(
                f"data.test: {both[0]} is a file of data.train too, so that test images are "
                "training images; name other files, set data.test_fraction, or leave data.test out"
            )


class ParquetReader(ImageReader, HasEncoded):
    """The rows of one split."""

    def __init__(
        self,
        column: ImageColumn,
        channels: int,
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str] | None,
        label_column: str | None,
    ) -> None:
        self._column = column
        self.channels = channels
        self.labels = labels
        self.class_names = class_names
        self.details = {"image_column": column.name, "label_column": label_column}
        """Which columns were taken."""
        self.image_size = self._probe()

    def __len__(self) -> int:
        return len(self._column)

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode_image(
            self._column.encoded(index), self.channels, partial(self.describe, index)
        )

    def describe(self, index: int) -> str:
        path, row = self._column.locate(index)
        return f"{shown(path)} row {row}"

    def key(self, index: int) -> str:
        """The name of the file and the row."""
        path, row = self._column.locate(index)
        return f"{path.name} row {row}"

    def encoded_sizes(self) -> NDArray[np.int64]:
        """Bytes of each row; 0 for those that only name a file."""
        return self._column.sizes()

    def encoded(self, index: int) -> memoryview:
        return self._column.encoded(index)

    def fingerprint(self) -> str:
        """Covers, of each shard, its size, its footer (rows, offsets, sizes and statistics of every
        column chunk) and 16 blocks of 4 KiB; and the labels. Not names or times, so copies have the
        same. Pixels that change within an equal size can be missed; everything else is seen."""
        digest = hashlib.blake2b(f"{self.channels}\0{self.details}".encode(), digest_size=8)
        digest.update(self._column.digest())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def _probe(self) -> tuple[int, int] | None:
        """The size that a sample of the images has in common."""
        sizes = []
        for encoded in self._column.sample(_PROBED_IMAGES):
            try:
                sizes.append(image_size(encoded))
            except UnreadableImageError:
                continue
        return common_size(sizes)


def resolve_paths(field: str, given: Path | Sequence[Path], split: str) -> list[Path]:
    """The shards that a recipe names for a split, hidden files left out. Raises RecipeError where
    there are none, and where it is not certain which of them belong to the split."""
    if not isinstance(given, Path):
        return [path for entry in given for path in resolve_paths(field, entry, split)]
    pattern = "*" in str(given)
    if pattern:
        anchor = Path(given.anchor)
        found = list(anchor.glob(str(given.relative_to(anchor)) if given.anchor else str(given)))
    elif given.is_dir():
        found = list(given.glob("*.parquet"))
    elif is_regular(given):
        return [given]
    elif given.exists():
        raise RecipeError(f"{field}: {given} is no regular file; expected a Parquet file")
    else:
        raise missing(field, given, "a Parquet file, a folder of them, or a pattern with *")
    found = sorted(path for path in found if not path.name.startswith(".") and is_regular(path))
    if not found:
        raise RecipeError(
            f"{field}: {given} holds no Parquet files; expected *.parquet files; correct the path"
        )
    return _of_split(field, given, found, split, chosen=pattern)


def _of_split(
    field: str, given: Path, found: list[Path], split: str, *, chosen: bool
) -> list[Path]:
    """The files of this split, where their names speak of several. chosen: a pattern chose the
    files, which are then not sifted again."""
    splits = [split_of(path.stem) for path in found]
    names = sorted({name for name in splits if name})
    if len(names) < 2:
        return found
    wanted = split if split in names else "validation" if split == "test" else None
    unclear = [path.name for path, name in zip(found, splits, strict=True) if name is None]
    clear = wanted in names and not unclear and not (split == "test" and len(names) == 3)
    if clear and not chosen:
        return [path for path, name in zip(found, splits, strict=True) if name == wanted]
    said = ", ".join(f"{n} ({splits.count(n)})" for n in names)
    said += f" and {unclear[0]}, which says no split" if unclear else ""
    folder = given.parent if chosen else given
    raise RecipeError(
        f"{field}: the names of the files in {given} speak of several splits: {said}; write a "
        f"pattern that takes one of them, such as {field}={folder}/{wanted or split}*.parquet, or "
        "a list of such patterns"
    )


def _on_train_classes(
    labels: NDArray[np.int64] | None,
    names: tuple[str, ...] | None,
    train_names: tuple[str, ...] | None,
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Test labels as positions in the classes of the training split."""
    if labels is None or names is None or train_names is None:
        return None, None
    unknown = sorted(set(names) - set(train_names))
    if unknown:
        raise RecipeError(
            f"data.test: holds classes that data.train lacks: {', '.join(unknown[:5])}; "
            "valid are the classes of data.train; correct the paths or data.label_column"
        )
    position = {name: index for index, name in enumerate(train_names)}
    mapping = np.array([*(position[name] for name in names), -1], dtype=np.int64)
    return mapping[labels], train_names  # -1, no label, takes the last
