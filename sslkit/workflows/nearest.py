"""The rows of a file of `sslkit embed` that are nearest to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslkit.errors import DataError, RecipeError

_COLUMNS = ("index", "label", "image")


def find_nearest(path: Path, query: str, number: int) -> list[dict[str, Any]]:
    """The row that is asked for and the `number` rows with the highest cosine similarity to it,
    the nearest first: index, label (None where there is none), image, similarity.

    query: the index of a row, its image as the file names it, or the end of that name. One row
    group is held at a time. Raises DataError for another file, RecipeError for no such row."""
    place, asked = _find(path, query)
    best: list[tuple[float, int]] = []
    for start, features in _features(path):
        similarity = normalize(features, dim=1) @ asked
        values, at = similarity.topk(min(number + 1, len(similarity)))
        best += [(v, start + r) for v, r in zip(values.tolist(), at.tolist(), strict=True)]
        best = sorted((each for each in best if each[1] != place), key=lambda each: -each[0])
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
            return chosen[0], normalize(features[chosen[0] - start], dim=0)
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
    """(place of the first row, features (B, F)) of each row group."""
    start = 0
    for table in _tables(path, ("feature",)):
        column = table.column("feature").combine_chunks()
        flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
        yield start, flat.view(table.num_rows, -1)
        start += table.num_rows


def _tables(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """These columns of each row group, as far as the file has them. Raises DataError."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            if "image" in columns and "image" not in there:
                raise DataError(f"{path}: does not say what its rows are; make it again")
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=there)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: not readable as a file of `sslkit embed` ({reason})") from error
