"""The rows of a file of `sslkit embed` that are nearest to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from sslkit.errors import DataError, RecipeError
from sslkit.report.nearest import Neighbour

from .feature_file import FeatureFile

_COLUMNS = ("index", "label", "image")


def find_nearest(path: Path, query: str, number: int) -> list[Neighbour]:
    """The row that is asked for and the `number` rows with the highest cosine similarity to it,
    the nearest first.

    query: the index of a row, its image as the file names it, or the end of that name. Rows whose
    features are not finite are left out. Raises DataError for another file, RecipeError for no such
    row."""
    file = FeatureFile(path)
    place = _find(file, query)
    asked = _feature(file, place, query)
    best: list[tuple[float, int]] = []
    for start, features in file.features():
        similarity = (normalize(features, dim=1) @ asked).nan_to_num(nan=-inf)
        values, at = similarity.topk(min(number + 1, len(similarity)))
        best += [(v, start + r) for v, r in zip(values.tolist(), at.tolist(), strict=True)]
        best = [each for each in best if each[1] != place and each[0] > -inf]
        best.sort(key=lambda each: -each[0])
        best = best[:number]
    rows = [(1.0, place), *best]
    found = _described(file, [row for _, row in rows])
    return [Neighbour(**found[row], similarity=value) for value, row in rows]


def _find(file: FeatureFile, query: str) -> int:
    """The place of the row that is asked for."""
    found: list[int] = []
    exact: list[int] = []
    place = 0
    for table in file.parts(("index", "image")):
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
        raise RecipeError(f"--nearest {query}: {file.path}: {several if chosen else none}")
    return chosen[0]


def _feature(file: FeatureFile, place: int, query: str) -> Tensor:
    """The feature (F,) of a row, of length 1."""
    for start, features in file.features():
        if start <= place < start + len(features):
            asked = normalize(features[place - start], dim=0)
            if not asked.isfinite().all():
                raise DataError(
                    f"{file.path}: the feature of {query} is not finite; ask for another"
                )
            return asked
    raise DataError(f"{file.path}: changed while it was read")


def _described(file: FeatureFile, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Place -> index, label and image of these rows."""
    wanted, found, start = set(rows), {}, 0
    for table in file.parts(_COLUMNS):
        for place in wanted & set(range(start, start + table.num_rows)):
            row = table.slice(place - start, 1).to_pylist()[0]
            found[place] = {name: row.get(name) for name in _COLUMNS}
        start += table.num_rows
    return found
