"""Columns of Parquet shards: which one holds what, and access to single rows."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.builtin.sources.locations import sample_positions
from sslkit.errors import DataError, RecipeError
from sslkit.interfaces import UnreadableImageError

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
"""Column names that `label_column: auto` takes for labels."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file, footer read."""

    path: Path
    rows: int
    schema: Any
    """pyarrow.Schema."""

    def features(self) -> dict[str, Any]:
        """The `features` that the library `datasets` stores in the schema, else {}."""
        metadata = (self.schema.metadata or {}).get(b"huggingface")
        if metadata is None:
            return {}
        try:
            features = json.loads(metadata)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            return {}
        return features if isinstance(features, dict) else {}

    def feature_columns(self, kind: str) -> list[str]:
        """Columns that the metadata declares as `Image` or `ClassLabel`."""
        return [
            name
            for name, feature in self.features().items()
            if isinstance(feature, dict)
            and feature.get("_type") == kind
            and name in self.schema.names
        ]


def open_shards(paths: Sequence[Path]) -> list[Shard]:
    """Reads the footers. Raises DataError for files that are not Parquet or that differ in their
    columns."""
    import pyarrow as pa
    from pyarrow import parquet

    shards: list[Shard] = []
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                shards.append(Shard(path, file.metadata.num_rows, file.schema_arrow))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data: {path} is not a readable Parquet file ({reason}); copy it again"
            ) from error
        if not shards[-1].schema.equals(shards[0].schema, check_metadata=False):
            raise DataError(
                f"data: {path} has columns {_columns(shards[-1])}, but {shards[0].path} has "
                f"{_columns(shards[0])}; shards of one split must agree"
            )
    return shards


def find_image_column(shard: Shard, given: str | None) -> str:
    """The column with the images. Raises RecipeError where it cannot be told."""
    holders = [field.name for field in shard.schema if _holds_images(field.type)]
    if given is not None:
        if given in holders:
            return given
        raise RecipeError(
            f"data.image_column: {given!r} holds no images in {shard.path}; "
            f"valid are {', '.join(holders) or 'none of its columns'}"
        )
    declared = [name for name in shard.feature_columns("Image") if name in holders]
    for names in (declared, holders):
        if len(names) == 1:
            return names[0]
    if not holders:
        raise RecipeError(
            f"data: {shard.path} has no column of images (binary, or struct with bytes); "
            f"its columns are {_columns(shard)}; use another file"
        )
    raise RecipeError(
        f"data.image_column: {shard.path} has several columns of images: {', '.join(holders)}; "
        "name one of them"
    )


def find_label_column(shard: Shard, given: str | None, image_column: str) -> str | None:
    """The column with the labels, or None. Raises RecipeError where it cannot be told."""
    if given is None:
        return None
    candidates = [name for name in shard.schema.names if name != image_column]
    if given != "auto":
        if given in candidates:
            return given
        raise RecipeError(
            f"data.label_column: {given!r} is not a column of {shard.path}; valid are "
            f"{', '.join(candidates) or 'no columns'}, `auto`, or null for no labels"
        )
    declared = shard.feature_columns("ClassLabel")
    named = [name for name in candidates if name in LABEL_NAMES]
    found = declared or named
    if len(found) > 1:
        raise RecipeError(
            f"data.label_column: {shard.path} has several columns of labels: {', '.join(found)}; "
            "name one of them, or null for no labels"
        )
    return found[0] if found else None


def labels_of(
    shards: Sequence[Shard], column: str | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """(N,) class indices and the class names; (None, None) without labels, which includes a column
    of nothing but nulls or -1, as unlabelled test splits of the hub have it."""
    if column is None:
        return None, None
    import pyarrow as pa
    from pyarrow import compute, parquet

    parts = [parquet.read_table(shard.path, columns=[column])[column] for shard in shards]
    values = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_integer(values.type):
        present = compute.fill_null(values, -1).to_numpy().astype(np.int64)
        if (present == -1).all():
            return None, None
        names = _class_names(shards[0], column) or tuple(map(str, range(int(present.max()) + 1)))
        wrong = np.flatnonzero((present < 0) | (present >= len(names)))
        if len(wrong):
            raise DataError(
                f"data: row {wrong[0]} has label {values[int(wrong[0])]} in column {column}; valid "
                f"is 0 to {len(names) - 1}; set data.label_column to another column or to null"
            )
        return present, names
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        if values.null_count:
            raise DataError(
                f"data: column {column} has {values.null_count} rows without a label; "
                "set data.label_column to another column or to null"
            )
        unique, inverse = np.unique(np.array(values.to_pylist()), return_inverse=True)
        return inverse.astype(np.int64), tuple(map(str, unique))
    raise RecipeError(
        f"data.label_column: column {column} of {shards[0].path} holds {values.type}; "
        "valid are integers and strings"
    )


class ImageColumn:
    """The encoded images of all shards, as Arrow buffers: no Python object per row.

    The column is read into memory at the first access to a row; `sample` does not need that.
    """

    def __init__(self, shards: Sequence[Shard], name: str) -> None:
        self.shards = shards
        self.name = name
        self._shard_ends = list(accumulate(shard.rows for shard in shards))
        self._chunks: list[tuple[Any, Any]] | None = None
        self._chunk_ends: list[int] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._shard_ends[-1]

    def locate(self, index: int) -> tuple[Path, int]:
        """The file and the row of an image."""
        number = bisect_right(self._shard_ends, index)
        before = self._shard_ends[number - 1] if number else 0
        return self.shards[number].path, index - before

    def encoded(self, index: int) -> memoryview:
        """The encoded image `index`. Raises UnreadableImageError for an empty row."""
        with self._lock:
            if self._chunks is None:
                self._chunks = self._read()
        number = bisect_right(self._chunk_ends, index)
        before = self._chunk_ends[number - 1] if number else 0
        return self._bytes(*self._chunks[number], index - before, self.locate(index)[0])

    def sample(self, most: int) -> list[memoryview]:
        """Some images of the first row group of the first shard and of the last of the last."""
        from pyarrow import parquet

        found = []
        for shard, last in ((self.shards[0], False), (self.shards[-1], True)):
            with parquet.ParquetFile(shard.path) as file:
                groups = file.metadata.num_row_groups
                if not groups:
                    continue
                table = file.read_row_group(groups - 1 if last else 0, columns=[self.name])
            chunks = _split(table[self.name])
            for binary, paths in chunks:
                for row in sample_positions(len(binary), "probe", most // 2):
                    try:
                        found.append(self._bytes(binary, paths, row, shard.path))
                    except (UnreadableImageError, OSError):
                        continue
        return found

    def _read(self) -> list[tuple[Any, Any]]:
        from pyarrow import parquet

        chunks = []
        for shard in self.shards:
            table = parquet.read_table(shard.path, columns=[self.name], memory_map=True)
            chunks += _split(table[self.name])
        self._chunk_ends = list(accumulate(len(binary) for binary, _ in chunks))
        return chunks

    @staticmethod
    def _bytes(binary: Any, paths: Any, row: int, shard: Path) -> memoryview:
        value = binary[row]
        if value.is_valid:
            return memoryview(value.as_buffer())
        if paths is not None and paths[row].is_valid:
            return memoryview((shard.parent / paths[row].as_py()).read_bytes())
        raise UnreadableImageError("the row holds no image")


def _split(column: Any) -> list[tuple[Any, Any]]:
    """The (bytes, paths) arrays of each chunk; paths None where the column has none."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return [(chunk, None) for chunk in column.chunks]
    names = [field.name for field in column.type]
    split = []
    for chunk in column.chunks:
        children = dict(zip(names, chunk.flatten(), strict=True))
        split.append((children["bytes"], children.get("path")))
    return split


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(shard: Shard, column: str) -> tuple[str, ...] | None:
    feature = shard.features().get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if names else None


def _columns(shard: Shard) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in shard.schema)
