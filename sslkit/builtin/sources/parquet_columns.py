"""Columns of Parquet shards: which one holds the images, which one the labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.errors import DataError, RecipeError, first_line_of
from sslkit.files import parse_json

_SHOWN_COLUMNS, _SHOWN_LETTERS = 10, 60

_MOST_TIMES, _MOST_MORE = 16, 64 << 20
"""A column takes at most so many times the bytes of its file, and so many more, in memory: images
hardly shrink by compression."""

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
"""Column names that `label_column: auto` takes for labels."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file, footer read."""

    path: Path
    rows: int
    schema: Any
    """pyarrow.Schema."""
    column_bytes: Mapping[str, int]
    """Uncompressed size of each top-level column."""
    size: int
    """Bytes of the file."""

    def refuse_growth(self, column: str, found: int | None = None) -> None:
        """Raises DataError where a column takes far more memory than its file has bytes: a page of
        zeros, or one value that stands for all rows, makes gigabytes of a few kilobytes. found:
        what was read of it so far; None: what the footer says."""
        taken = self.column_bytes.get(column, 0) if found is None else found
        if taken > _MOST_TIMES * self.size + _MOST_MORE:
            raise DataError(
                f"data: {self.path} has {self.size:,} bytes, and its column "
                f"{_few([column])} takes more than {taken >> 20:,} MiB in memory; write the "
                "file again, without values that stand in it many times over"
            )

    def features(self) -> dict[str, Any]:
        """The `features` that the library `datasets` stores in the schema, else {}."""
        metadata = (self.schema.metadata or {}).get(b"huggingface")
        if metadata is None:
            return {}
        try:
            features = parse_json(metadata)["info"]["features"]
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
    from pyarrow import parquet

    shards: list[Shard] = []
    for path in paths:
        with whole_file(path), parquet.ParquetFile(path) as file:
            sizes = column_bytes(file.metadata, range(file.metadata.num_row_groups))
            rows, size = file.metadata.num_rows, path.stat().st_size
            shards.append(Shard(path, rows, file.schema_arrow, sizes, size))
        if rows > size:  # of any use, each has a byte
            raise DataError(f"data: {path} says it has {rows:,} rows, in {size:,} bytes")
        if not shards[-1].schema.equals(shards[0].schema, check_metadata=False):
            raise DataError(
                f"data: {path} has columns {_columns(shards[-1])}, but {shards[0].path} has "
                f"{_columns(shards[0])}; shards of one split must agree"
            )
    return shards


@contextmanager
def whole_file(path: Path, *, retried: bool = False) -> Iterator[None]:
    """Turns what Arrow raises for a damaged file into a DataError. OSErrors, by which Arrow tells
    of some damage too, pass where the caller tries again after them."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if retried and isinstance(error, OSError):
            raise
        raise DataError(
            f"data: {path} is not a readable Parquet file ({first_line_of(error)}); copy it again"
        ) from error


def find_image_column(shard: Shard, given: str | None) -> str:
    """The column with the images. Raises RecipeError where it cannot be told."""
    holders = [field.name for field in shard.schema if _holds_images(field.type)]
    if given is not None:
        if given in holders:
            return given
        raise RecipeError(
            f"data.image_column: {given!r} holds no images in {shard.path}; "
            f"valid are {_few(holders) or 'none of its columns'}"
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
        f"data.image_column: {shard.path} has several columns of images: {_few(holders)}; "
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
            f"{_few(candidates) or 'no columns'}, `auto`, or null for no labels"
        )
    declared = shard.feature_columns("ClassLabel")
    named = [name for name in candidates if name in LABEL_NAMES]
    found = declared or named
    if len(found) > 1:
        raise RecipeError(
            f"data.label_column: {shard.path} has several columns of labels: {_few(found)}; "
            "name one of them, or null for no labels"
        )
    return found[0] if found else None


def labels_of(
    shards: Sequence[Shard], column: str | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """(N,) positions in the class names, -1 where an image has no label, and the names; (None,
    None) without labels, which includes a column of nothing but nulls or -1, as unlabelled test
    splits of the hub have it.

    Without names in the metadata the classes are the values that occur, in ascending order."""
    if column is None:
        return None, None
    import pyarrow as pa

    kind = shards[0].schema.field(column).type
    if _is_text(kind):
        return _text_positions(_read_labels(shards, column, as_dictionary=True))
    values = pa.chunked_array(_read_labels(shards, column), kind)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    values = _plain_labels(values, f"column {column} of {shards[0].path}")
    if values.null_count == len(values):
        return None, None
    names = _class_names(shards[0], column) if pa.types.is_integer(values.type) else None
    return _positions(values, column) if names is None else _among(values, column, names)


def _read_labels(shards: Sequence[Shard], column: str, *, as_dictionary: bool = False) -> list[Any]:
    """The chunks of a column. as_dictionary: as numbers of values, each of which is in memory
    once."""
    from pyarrow import parquet

    chunks: list[Any] = []
    for shard in shards:
        shard.refuse_growth(column)
        with whole_file(shard.path):
            read = [column] if as_dictionary else None
            table = parquet.read_table(shard.path, columns=[column], read_dictionary=read)
            chunks += table[column].chunks
    return chunks


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _text_positions(
    chunks: Sequence[Any],
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels as positions in the texts that occur; see `labels_of`."""
    import pyarrow as pa

    found: list[tuple[list[str], NDArray[np.int64]]] = []
    for chunk in chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        rows = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        found.append((coded.dictionary.to_pylist(), rows))
    classes = sorted({texts[row] for texts, rows in found for row in np.unique(rows) if row >= 0})
    if not classes:
        return None, None
    position = {text: number for number, text in enumerate(classes)}
    parts = [
        np.array([*(position.get(text, -1) for text in texts), -1])[rows] for texts, rows in found
    ]
    return np.concatenate(parts).astype(np.int64), tuple(classes)


def _plain_labels(values: Any, where: str) -> Any:
    """Labels as int64, uint64 or string, with null for none. Raises RecipeError for other types.
    Texts are read in another way."""
    import pyarrow as pa
    from pyarrow import compute

    kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.string())
    if pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return values.cast(pa.large_string())
    whole = pa.types.is_floating(kind) and _are_whole(values)
    if not (pa.types.is_integer(kind) or whole):
        raise RecipeError(
            f"data.label_column: {where} holds {kind}; valid are integers, booleans and strings"
            + (", and numbers without a fraction" if pa.types.is_floating(kind) else "")
        )
    if whole:  # as pandas keeps integers where some are missing
        values = values.cast(pa.float64())
        values = compute.if_else(compute.is_nan(values), pa.scalar(None, pa.float64()), values)
        values = values.cast(pa.int64())
    elif not pa.types.is_uint64(kind):
        values = values.cast(pa.int64())
    none = compute.equal(values, pa.scalar(-1, pa.int64())) if values.type == pa.int64() else None
    return values if none is None else compute.if_else(none, pa.scalar(None, pa.int64()), values)


def _are_whole(values: Any) -> bool:
    """Whether all numbers are whole; those that are no number count as missing."""
    found = values.drop_null().to_numpy().astype(np.float64)
    found = found[~np.isnan(found)]
    return bool((np.abs(found) < 2**53).all() and (found == np.floor(found)).all())


def _positions(values: Any, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as positions in the values that occur."""
    import pyarrow as pa
    from pyarrow import compute

    classes = compute.unique(values.drop_null())
    classes = classes.take(compute.sort_indices(classes))
    if pa.types.is_integer(classes.type) and (lowest := classes[0].as_py()) < 0:
        raise DataError(
            f"data: column {column} has label {lowest}; valid are whole numbers from 0, and -1 or "
            "null for no label; set data.label_column to another column or to null"
        )
    found = compute.fill_null(compute.index_in(values, value_set=classes, skip_nulls=True), -1)
    return found.to_numpy().astype(np.int64), tuple(map(str, classes.to_pylist()))


def _among(
    values: Any, column: str, names: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels that are positions in these names already."""
    import pyarrow as pa
    from pyarrow import compute

    count = pa.scalar(len(names), values.type)
    wrong = compute.or_(
        compute.less(values, pa.scalar(0, values.type)), compute.greater_equal(values, count)
    )
    row = compute.index(compute.fill_null(wrong, False), True).as_py()
    if row >= 0:
        raise DataError(
            f"data: row {row} has label {values[row]} in column {column}; valid is 0 to "
            f"{len(names) - 1}, and -1 or null for none; set data.label_column to another column "
            "or to null"
        )
    present = compute.fill_null(values.cast(pa.int64()), -1)
    return present.to_numpy().astype(np.int64), names


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def column_bytes(metadata: Any, groups: Iterable[int]) -> dict[str, int]:
    """Uncompressed size of each top-level column in some row groups, as the footer says."""
    sizes: dict[str, int] = {}
    for number in groups:
        group = metadata.row_group(number)
        for position in range(group.num_columns):
            leaf = group.column(position)
            name = leaf.path_in_schema.split(".")[0]
            sizes[name] = sizes.get(name, 0) + leaf.total_uncompressed_size
    return sizes


def _class_names(shard: Shard, column: str) -> tuple[str, ...] | None:
    feature = shard.features().get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _columns(shard: Shard) -> str:
    return _few([f"{field.name} ({field.type})" for field in shard.schema])


def _few(names: Sequence[str]) -> str:
    """Names for a message, each cut, and the number of those that are too many for a line."""
    shown = [
        name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}..." for name in names
    ]
    rest = len(shown) - _SHOWN_COLUMNS
    return ", ".join(shown[:_SHOWN_COLUMNS]) + (f" and {rest} more" if rest > 0 else "")
