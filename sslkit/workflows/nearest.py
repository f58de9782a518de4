"""The rows of a file of `sslkit embed` that are nearest to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslkit.errors import DataError, RecipeError
from sslkit.files import open_file, reason

_COLUMNS = ("index", "label", "image")
_ROWS, _VALUES = 1 << 13, 1 << 22
"""Rows, and numbers of their features, that are in memory at a time."""


def find_nearest(path: Path, query: str, number: int) -> list[dict[str, Any]]:
    """The row that is asked for and the `number` rows with the highest cosine similarity to it,
    the nearest first: index, label (None where there is none), image, similarity.

    query: the index of a row, its image as the file names it, or the end of that name. Rows whose
    features are not finite are left out. Raises DataError for another file, RecipeError for no such
    row."""
    place, asked = _find(path, query)
    best: list[tuple[float, int]] = []
    for start, features in _features(path):
        similarity = (normalize(features, dim=1) @ asked).nan_to_num(nan=-inf)
        values, at = similarity.topk(min(number + 1, len(similarity)))
        best += [(v, start + r) for v, r in zip(values.tolist(), at.tolist(), strict=True)]
        best = [each for each in best if each[1] != place and each[0] > -inf]
        best.sort(key=lambda each: -each[0])
        best = best[:number]
    rows = [place, *(row for _, row in best)]
    found = _described(path, rows)
    similarities = [1.0, *(value for value, _ in best)]
    return [
        {**found[row], "similarity": value} for row, value in zip(rows, similarities, strict=True)
    ]


def _find(path: Path, query: str) -> tuple[int, Tensor]:
    """The place of the row that is asked for, and its feature (F,) of length 1."""
    found: list[int] = []
    exact: list[int] = []
    place = 0
    for table in _tables(path, ("index", "image")):
        for index, image in zip(*(table.column(name).to_pylist() for name in ("index", "image")),
                                strict=True):  # fmt: skip
            if query in (str(index), image):
                exact.append(place)
            elif image is not None and image.endswith(f"/{query}"):
                found.append(place)
            place += 1
    chosen = exact or found
    if len(chosen) != 1:
        several = f"ends the names of {len(chosen):,} images: give more of it"
        none = f"is none of its {place:,} rows: give the index of one, or the path of its image"
        raise RecipeError(f"--nearest {query}: {path}: {several if chosen else none}")
    for start, features in _features(path):
        if start <= chosen[0] < start + len(features):
            asked = normalize(features[chosen[0] - start], dim=0)
            if not asked.isfinite().all():
                raise DataError(f"{path}: the feature of {query} is not finite; ask for another")
            return chosen[0], asked
    raise DataError(f"{path}: changed while it was read")


def _described(path: Path, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Place -> index, label and image of these rows."""
    wanted, found, start = set(rows), {}, 0
    for table in _tables(path, _COLUMNS):
        for place in wanted & set(range(start, start + table.num_rows)):
            row = table.slice(place - start, 1).to_pylist()[0]
            found[place] = {name: row.get(name) for name in _COLUMNS}
        start += table.num_rows
    return found


def _features(path: Path) -> Iterator[tuple[int, Tensor]]:
    """(place of the first row, features (B, F)) of some rows after the other."""
    start = 0
    for table in _tables(path, ("feature",)):
        column = table.column("feature")
        flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
        if len(flat) != table.num_rows * column.type.list_size:
            raise DataError(f"{path}: holds rows without a feature; make it again")
        yield start, flat.view(table.num_rows, -1)
        start += table.num_rows


def _tables(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """These columns of some rows after the other, as far as the file has them: a file may say that
    it has billions of rows, and they are never in memory together. Raises DataError."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_file(path) as opened, parquet.ParquetFile(opened) as file:
            schema = file.schema_arrow
            _check(path, schema)
            there = [name for name in columns if name in schema.names]
            rows = max(1, _VALUES // schema.field("feature").type.list_size)
            yield from file.iter_batches(min(rows, _ROWS), columns=there)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not readable as a file of `sslkit embed` ({reason(error)})"
        ) from error


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
