"""Reading what `sslkit embed` wrote, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.errors import DataError
from sslkit.files import open_file, parse_json, reason

METADATA = b"sslkit"
"""Key of the schema's metadata that holds where the features come from, as JSON."""
_ROWS, _VALUES = 1 << 13, 1 << 22
"""Rows, and numbers of their features, that are in memory at a time."""


class FeatureFile:
    """A Parquet file of N features of width F, which may come from a stranger: it may say that it
    has billions of rows, and they are never in memory together. Raises DataError, here and as it is
    read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            schema = file.schema_arrow
            _check(path, schema)
            self.columns: Sequence[str] = schema.names
            self.num_rows: int = file.metadata.num_rows
            self.width: int = schema.field("feature").type.list_size
            self._metadata: dict[bytes, bytes] = schema.metadata or {}

    @property
    def origin(self) -> dict[str, Any]:
        """The metadata: run, encoder, data, preprocessing."""
        try:
            found: dict[str, Any] = parse_json(self._metadata[METADATA])
        except (KeyError, ValueError) as error:
            raise self._unreadable(error) from error
        return found

    def parts(self, columns: Sequence[str]) -> Iterator[Any]:
        """These columns of some rows after the other, as far as the file has them."""
        there = [name for name in columns if name in self.columns]
        with self._opened() as file:
            yield from file.iter_batches(min(max(1, _VALUES // self.width), _ROWS), columns=there)

    def features(self) -> Iterator[tuple[int, Tensor]]:
        """(place of the first row, features (n, F)) of some rows after the other."""
        start = 0
        for table in self.parts(("feature",)):
            column = table.column("feature")
            flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
            if len(flat) != table.num_rows * self.width:
                raise DataError(f"{self.path}: holds rows without a feature; make it again")
            yield start, flat.view(table.num_rows, self.width)
            start += table.num_rows

    def rows(self, rows: Tensor) -> Tensor:
        """Features (M, F) of some rows, in their order."""
        found = torch.empty(len(rows), self.width)
        for start, features in self.features():
            inside = (rows >= start) & (rows < start + len(features))
            found[inside] = features[rows[inside] - start]
        return found

    def numbers(self, column: str) -> Tensor | None:
        """(N,) int64 of a column, -1 where there is none; None where the file lacks it."""
        if column not in self.columns:
            return None
        parts = [torch.empty(0, dtype=torch.int64)]
        for table in self.parts((column,)):
            filled = table.column(column).fill_null(-1).to_numpy(zero_copy_only=False)
            parts.append(torch.from_numpy(filled.copy()))
        return torch.cat(parts)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with open_file(self.path) as opened, parquet.ParquetFile(opened) as file:
                yield file
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.path}: not readable as a file of `sslkit embed` ({reason(error)})")


def _check(path: Path, schema: Any) -> None:
    """Raises DataError where the columns are not those that `sslkit embed` writes."""
    from pyarrow import types

    kinds = {
        "index": types.is_integer,
        "image": lambda kind: types.is_string(kind) or types.is_large_string(kind),
        "feature": _is_feature,
    }
    if "label" in schema.names:
        kinds["label"] = types.is_integer
    for name, is_right in kinds.items():
        if schema.names.count(name) != 1 or not is_right(schema.field(name).type):
            raise DataError(
                f"{path}: its column '{name}' is missing, or is none of a file of `sslkit embed`; "
                "make it again"
            )


def _is_feature(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_fixed_size_list(kind)
        and types.is_float32(kind.value_type)
        and 0 < kind.list_size <= _VALUES
    )


def read_embeddings(path: Path) -> tuple[Tensor, Tensor | None, Tensor, dict[str, Any]]:
    """All of a file of `sslkit embed`: indices (N,), labels (N,) or None (-1 where an image has
    none), features (N, F), and the metadata. Raises DataError."""
    file = FeatureFile(path)
    indices = file.numbers("index")
    assert indices is not None
    parts = [torch.empty(0, file.width), *(features for _, features in file.features())]
    return indices, file.numbers("label"), torch.cat(parts), file.origin
