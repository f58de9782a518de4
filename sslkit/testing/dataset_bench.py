"""A data source on the bench: opened, read, and copied to where its data may be changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
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
from sslkit.errors import DataError, failure_of

from .any_facts import FactsLaws
from .dataset_files import NamedFiles, copy_files
from .laws import LawBrokenError, UntriedError
from .opened_files import watched_files
from .small_runs import listed

SplitName = Literal["train", "test"]
_FEW = 32
_OF_STREAM = 12
_LOOKED_AT = 256
BY_HAND = "change a file of its data by hand, and compare fingerprint() before and after"
"""What is left to do where the kit cannot copy its files."""


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
    def named(self) -> NamedFiles:
        """What its fields name of its data."""
        return NamedFiles.of(dict(self.subject.slot.config))

    def copied(self, name: str) -> tuple[dict[str, Any], list[Path]]:
        """(fields that name copies of its data, the files of these). name: of the copy. Raises
        SkipTest where there is none, and UntriedError where it cannot be copied."""
        root, parts = self._copied_parts
        return self._copy(name, root, parts)

    def refuse_no_files(self) -> None:
        """Raises SkipTest where no field names data, and UntriedError where there are some."""
        if self.named.paths:
            return
        if beyond := self.beyond_reach:
            raise UntriedError(f"{beyond}: {BY_HAND}")
        raise SkipTest("no field of it names a file or folder")

    @cached_property
    def beyond_reach(self) -> str:
        """Where no field names data that are there: what it reads, or is to read, all the same, in
        words; may be empty."""
        if self.named.paths:
            return ""
        if read := self._read(self.source()):
            return f"it reads {_shown(read)}, to which no field of it leads"
        config = self.subject.slot.config
        for field in type(config).model_fields:
            value = getattr(config, field)
            if isinstance(value, Path) or (isinstance(value, str) and os.sep in value):
                return f"`{field}: {value}` is no file, folder or pattern of files here"
        return ""

    @cached_property
    def _copied_parts(self) -> tuple[Path, tuple[Path, ...]]:
        """(a folder, files and folders in it) of which a copy gives the same samples: what fields
        name, or the folders that these lie in, for files beside them."""
        self.refuse_no_files()
        named = self.named
        fault = self._fault_of_copy(named.root, named.paths)
        if not fault:
            return named.root, named.paths
        beside = {path.parent for path in (*named.paths, *self._read(self.source()))}
        parts = (*named.paths, *sorted(beside))
        root = Path(os.path.commonpath([named.root, *beside]))
        try:
            fault = self._fault_of_copy(root, parts)
        except UntriedError:
            fault += ", and the folders that they lie in are too large to copy"
        if fault:
            raise UntriedError(f"a copy of its files {fault}: {BY_HAND}")
        return root, parts

    def _copy(
        self, name: str, root: Path, parts: Sequence[Path]
    ) -> tuple[dict[str, Any], list[Path]]:
        target = self.subject.folder / name
        copies = copy_files(parts, root, target)
        return self.named.moved(lambda path: target / path.relative_to(root)), copies

    def _fault_of_copy(self, root: Path, parts: Sequence[Path]) -> str:
        """What is wrong with an unchanged copy, in words; empty where nothing is."""
        fields, _ = self._copy("tried", root, parts)
        try:
            beyond = self._read(self.source(**fields))
            mine, theirs = (
                [contents(reader) for reader in (opened(source), source.open("test")) if reader]
                for source in (self.source(), self.source(**fields))
            )
        except Exception as error:  # the component's, of whatever kind
            return f"does not open ({failure_of(error)})"
        if beyond:
            return f"still reads {_shown(beyond)}, which they name by a whole path"
        return "" if mine == theirs else "gives other samples"

    def _read(self, source: DataSource) -> list[Path]:
        """Files of data that are read of a source, but for copies and what lies in hidden
        folders."""
        with watched_files() as seen:
            for reader in filter(None, (opened(source), source.open("test"))):
                for index in positions(reader):
                    sample_of(reader, index)
        return [
            path
            for path in map(Path, sorted(seen))
            if not path.is_relative_to(self.subject.folder)
            and not any(part.startswith(".") for part in path.parent.parts)
        ]

    def other_channels(self) -> Sequence[Any]:
        """The other values of a field `channels` that is a choice of some."""
        config = self.subject.slot.config
        field = type(config).model_fields.get("channels")
        if field is None or get_origin(field.annotation) is not Literal:
            return ()
        return _others(getattr(config, "channels"), field.annotation)  # noqa: B009

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


def _shown(paths: Sequence[Path]) -> str:
    return listed([path.name for path in paths])


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
