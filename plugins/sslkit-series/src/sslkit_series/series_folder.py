"""Series in `.npy` files, one each, with classes from folders or without."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.api import DataSource, DataSourceConfig, SampleSpec, SplitReader, UnreadableImageError
from sslkit.errors import DataError, RecipeError

from .npy import BadSeriesError, read_series, series_shape

_HASHED_FILES = 64
_MAX_DEPTH = 32
_MAX_BLUR = 0.01
_LOOKED_AT = 1 << 14
"""Values of each channel that are held against what float32 makes of them."""


class SeriesFolder(DataSource):
    """One series in each `.npy` file: (length,) or (channels, length) numbers, all of one shape.

    Files are read when they are needed, as float32; one whose values float32 cannot tell apart,
    such as times in nanoseconds, is unreadable. Links, hidden files and files with other endings
    are left out, and counted.
    """

    class Config(DataSourceConfig):
        """Fields of the `series_folder` source."""

        train: Path
        """Folder with the training series."""
        test: Path | None = None
        """Folder with the test series. Its classes must be among those of `train`."""
        labels: Literal["folders", "none"] = "folders"
        """`folders`: train/<class>/<name>.npy; `none`: no labels, files at any depth."""

    config: Config

    def open(self, split: Literal["train", "test"]) -> SeriesReader | None:
        """The reader of a split: lists the folder and reads the header of one file. Raises
        RecipeError for paths and layouts that are not as the recipe says, DataError where the first
        file holds no series."""
        root = self.config.train if split == "train" else self.config.test
        if root is None:
            return None
        field = f"data.{split}"
        if split == "test":
            self._refuse_nested(root)
        paths, left_out = self._train if split == "train" else _listed(field, root)
        if self.config.labels == "none":
            return SeriesReader(field, root, paths, None, None, left_out)
        classes = self._classes
        names = [_class_of(field, root, path) for path in paths]
        if unknown := sorted(set(names) - classes.keys()):
            raise RecipeError(
                f"{field}: {root} has classes that data.train lacks: {', '.join(unknown[:5])}; "
                f"valid are the {len(classes)} folders of {self.config.train}; correct the paths, "
                "or set data.labels=none"
            )
        labels = np.array([classes[name] for name in names], dtype=np.int64)
        return SeriesReader(field, root, paths, labels, tuple(classes), left_out)

    @cached_property
    def _train(self) -> tuple[list[str], int]:
        return _listed("data.train", self.config.train)

    @cached_property
    def _classes(self) -> dict[str, int]:
        names = {_class_of("data.train", self.config.train, path) for path in self._train[0]}
        return {name: position for position, name in enumerate(sorted(names))}

    def _refuse_nested(self, test: Path) -> None:
        outer, inner = os.path.realpath(self.config.train), os.path.realpath(test)
        if os.path.commonpath([outer, inner]) in (outer, inner):
            raise RecipeError(
                f"data.test: {test} and data.train {self.config.train} hold each other, so that "
                "test series are training series; name folders apart from each other, set "
                "data.test_fraction, or leave data.test out"
            )


class SeriesReader(SplitReader):
    """The files of one split, in the order of their paths."""

    def __init__(
        self,
        field: str,
        root: Path,
        paths: Sequence[str],
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str] | None,
        left_out: int,
    ) -> None:
        self._root, self._paths = root, paths
        self.labels, self.class_names = labels, class_names
        if left_out:
            self.notes = (
                f"{field}: {left_out:,} files and links of {root} are not read: series are regular "
                "files that end in .npy",
            )
        try:
            self._shape = series_shape(self._path(0))
        except (BadSeriesError, OSError) as error:
            raise DataError(
                f"{field}: {self._path(0)} {_reason(error)}; the first file says what all of them "
                "hold: mend or remove it"
            ) from error

    @property
    def sample(self) -> SampleSpec:
        """(C, L) float32, as the first file has it."""
        return SampleSpec(self._shape, "float32")

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> NDArray[np.float32]:
        try:
            found = read_series(self._path(index), self._shape)
        except BadSeriesError as error:
            raise UnreadableImageError(str(error)) from error
        with np.errstate(over="ignore"):  # a value beyond float32 is infinite, and refused as such
            values = np.array(found, dtype=np.float32, order="C")
        if not np.isfinite(values).all():
            raise UnreadableImageError("holds values that are not finite")
        if found.dtype.itemsize >= 4:
            _refuse_blurred(found, values)
        return values

    def describe(self, index: int) -> str:
        return self._path(index)

    def key(self, index: int) -> str:
        return self._paths[index]

    def fingerprint(self) -> str:
        """Covers the path below the folder and the size of every file, the whole content of 64 of
        them, and the labels. Not times, so copies have the same."""
        digest = hashlib.blake2b(digest_size=8)
        step = max(1, len(self) // _HASHED_FILES)
        for index, path in enumerate(self._paths):
            digest.update(b"\0%s\0%d" % (os.fsencode(path), self._size(index)))
            if index % step == 0:
                digest.update(self._content(index))
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()

    def _path(self, index: int) -> str:
        return f"{self._root}/{self._paths[index]}"

    def _size(self, index: int) -> int:
        try:
            return os.lstat(self._path(index)).st_size
        except OSError:
            return 0

    def _content(self, index: int) -> bytes:
        """What the file holds; nothing of what cannot be read, as far as it is known."""
        try:
            found = read_series(self._path(index))
        except (BadSeriesError, OSError):
            return b""
        return f"{found.dtype} {found.shape}".encode() + found.tobytes()


def _listed(field: str, root: Path) -> tuple[list[str], int]:
    """The series below a folder, sorted, and how many other files and links there are."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise RecipeError(f"{field}: {root} {what}; expected a folder of .npy files")
    found = list(_walk(str(root), ""))
    paths = sorted(path for path, is_series in found if is_series)
    if not paths:
        raise RecipeError(
            f"{field}: {root} holds no series ({len(found)} other files); expected files that end "
            "in .npy; correct the path"
        )
    return paths, len(found) - len(paths)


def _walk(root: str, below: str, depth: int = 0) -> Iterator[tuple[str, bool]]:
    """Every entry that is not hidden and no folder, with whether it is a series. Links are not
    followed: a folder from a stranger reaches nothing outside itself."""
    with os.scandir(f"{root}/{below}") as entries:
        for entry in entries:
            path = below + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                yield from _walk(root, f"{path}/", depth + 1)
            else:
                is_series = entry.name.lower().endswith(".npy")
                yield path, is_series and entry.is_file(follow_symlinks=False)


def _class_of(field: str, root: Path, path: str) -> str:
    parts = path.split("/")
    if len(parts) != 2:
        raise RecipeError(
            f"{field}: {root}/{path} is not in a class folder; class folders have every series "
            "exactly one level below (train/<class>/<name>.npy); move it, or set data.labels=none"
        )
    return parts[0]


def _refuse_blurred(found: NDArray[Any], values: NDArray[np.float32]) -> None:
    """Raises UnreadableImageError where rounding to float32 changes values by more than a hundredth
    of their deviation: a large offset hides what there is to learn."""
    some = np.s_[:, :: -(-found.shape[1] // _LOOKED_AT)]
    exact = found[some].astype(np.float64)
    lost, spread = np.abs(exact - values[some]).max(), exact.std()
    if lost > _MAX_BLUR * spread > 0.0:
        raise UnreadableImageError(
            f"holds values around {exact.mean():.6g} that differ by {spread:.3g}, which float32 "
            "cannot tell apart: subtract an offset before they are saved"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or type(error).__name__})"
    return str(error)
