"""A data source on the bench: opened, read, and copied to where its data may be changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sslkit.api import (
    DataSource,
    DataSourceConfig,
    HasBoxes,
    HasMasks,
    SplitReader,
    StreamReader,
    UnreadableImageError,
)
from sslkit.errors import DataError

from .any_facts import FactsLaws
from .laws import LawBrokenError

SplitName = Literal["train", "test"]
_FEW = 32
_OF_STREAM = 12
_MOST_COPIED = 64 << 20
_MOST_FILES = 5000
_LOOKED_AT = 256


@dataclass(frozen=True)
class Contents:
    """What a source gives, in few bytes: equal ones are equal data."""

    length: int
    samples: tuple[str, ...]
    labels: str
    class_names: tuple[str, ...]


class DatasetBench(FactsLaws):
    """What the laws of data sources share."""

    kind = "dataset"

    def source(self, **fields: Any) -> DataSource:
        """The source, built again. fields: that are changed."""
        slot = self.subject.slot
        source: DataSource = slot.with_config(slot.config.model_copy(update=fields)).build()
        return source

    @cached_property
    def train(self) -> SplitReader:
        """The reader of the training split. Raises LawBrokenError where there is none."""
        return opened(self.source())

    @cached_property
    def test(self) -> SplitReader | None:
        """The reader of the test split."""
        source = self.source()
        source.open("train")
        return source.open("test")

    def splits(self) -> Iterator[tuple[str, SplitReader]]:
        """(name, reader) of each split that there is."""
        yield "train", self.train
        if self.test is not None:
            yield "test", self.test

    def splits_again(self) -> Iterator[tuple[str, SplitReader]]:
        """The same, opened again: for what may spoil them."""
        source = self.source()
        yield "train", opened(source)
        if (test := source.open("test")) is not None:
            yield "test", test

    # --- Its files --------------------------------------------------------------------------------

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Field -> file or folder of its data that the field names."""
        values = dict(self.subject.slot.config)
        return {n: v for n, v in values.items() if isinstance(v, Path) and v.exists()}

    def copied(self, name: str) -> tuple[dict[str, Any], list[Path]]:
        """(fields that name copies of its data, the files of these). name: of the copy. Raises
        SkipTest where there is none or too much to copy."""
        if not self.paths:
            raise SkipTest("no field of it names a file or folder")
        files = [file for path in self.paths.values() for file in _files_of(path)]
        size = sum(file.stat().st_size for file in files)
        if size > _MOST_COPIED or len(files) > _MOST_FILES:
            raise SkipTest(
                f"{size / 1e6:,.0f} MB in {len(files):,} files are too much to copy; try it on less"
            )
        fields, copies = {}, []
        for field, path in self.paths.items():
            target = self.subject.folder / name / field / path.name
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target, copy_function=shutil.copy)  # without times
            else:
                shutil.copy(path, target)
            fields[field] = target
            copies += _files_of(target)
        return fields, copies

    def other_fields(self) -> Iterator[tuple[str, Any]]:
        """(field, another value that is valid) for each of its own fields that is a number, a
        switch or a choice."""
        config = self.subject.slot.config
        for name, field in type(config).model_fields.items():
            if name in DataSourceConfig.model_fields:
                continue
            for value in _others(getattr(config, name), field.annotation):
                try:
                    type(config).model_validate({**dict(config), name: value})
                except ValidationError:
                    continue
                yield name, value


def _others(value: Any, annotation: Any) -> Sequence[Any]:
    if get_origin(annotation) is Literal:
        return [other for other in get_args(annotation) if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    return [0.5 * value + 0.1] if isinstance(value, float) else []


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(Path(at) / name for at, _, names in os.walk(path) for name in names)


# --- Reading --------------------------------------------------------------------------------------


def opened(source: DataSource) -> SplitReader:
    """The reader of the training split. Raises LawBrokenError where there is none."""
    reader = source.open("train")
    if not isinstance(reader, SplitReader):
        raise LawBrokenError(f'open("train") gave {type(reader).__name__}')
    if len(reader) == 0:
        raise LawBrokenError("the training split has no samples")
    return reader


def positions(reader: SplitReader, most: int = _FEW) -> list[int]:
    """Some positions from the first to the last; the first ones of a stream."""
    if isinstance(reader, StreamReader):
        return list(range(min(len(reader), _OF_STREAM)))
    found: list[int] = np.unique(np.linspace(0, len(reader) - 1, most).astype(np.int64)).tolist()
    return found


def sample_of(reader: SplitReader, index: int) -> NDArray[Any] | None:
    """A copy of a sample; None where it is damaged."""
    try:
        return np.array(reader.read(index))
    except UnreadableImageError:
        return None


def equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether two samples have the same type, shape and values."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def contents(reader: SplitReader) -> Contents:
    """What it gives, at up to 256 positions."""
    labels = b"" if reader.labels is None else np.asarray(reader.labels).tobytes()
    places = positions(reader, _LOOKED_AT)
    return Contents(
        len(reader),
        tuple(_digest(reader, index) for index in places),
        hashlib.blake2b(labels).hexdigest(),
        tuple(reader.class_names or ()),
    )


def _digest(reader: SplitReader, index: int) -> str:
    """A digest of a sample and its annotations."""
    sample = sample_of(reader, index)
    parts = [b"damaged" if sample is None else repr((sample.shape, sample.dtype)).encode()]
    parts.append(b"" if sample is None else sample.tobytes())
    try:
        if isinstance(reader, HasMasks):
            parts.append(reader.mask(index).tobytes())
        if isinstance(reader, HasBoxes):
            boxes = reader.boxes(index)
            parts += [boxes.corners.tobytes(), boxes.labels.tobytes()]
    except (DataError, UnreadableImageError):
        parts.append(b"damaged")
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()
