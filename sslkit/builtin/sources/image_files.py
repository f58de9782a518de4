"""A reader over image files, and the search for them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.api import HasEncoded, ImageReader, UnreadableImageError
from sslkit.builtin.sources.decoding import decode_image, image_size
from sslkit.builtin.sources.path_table import PathTable
from sslkit.builtin.sources.paths import common_size, missing, sample_positions
from sslkit.builtin.sources.regular_files import is_inside, is_regular, read_image_file, shown
from sslkit.errors import DataError, RecipeError

_SUFFIXES = ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split(" "))
"""Endings of the files that are taken for images, in small letters."""

_PROBED_IMAGES = 64
_SHOWN_ENDINGS = 4
_NO_FILE = "links that lead nowhere, or devices"
_MAX_DEPTH = 64
_MAX_FOLDERS = 1 << 21


@dataclass
class Found:
    """What a search through a folder brought up."""

    images: PathTable = field(default_factory=PathTable)
    """Paths below the folder, in order of their names, folder by folder."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Ending -> number of the files without an image's ending, and of what is no file: links that
    lead nowhere, devices."""
    folders: int = 0

    def note(self, root: Path) -> list[str]:
        """What to say of the files that are not read, in one line; nothing where there are none,
        and of links and devices, which nobody can convert."""
        kept = Counter({kind: n for kind, n in self.ignored.items() if kind != _NO_FILE})
        count = kept.total()
        if not count:
            return []
        common = kept.most_common(_SHOWN_ENDINGS)
        kinds = [f"{number:,} {shown(ending)}" for ending, number in common]
        rest = count - sum(number for _, number in common)
        kinds += [f"{rest:,} others"] if rest else []
        return [
            f"{count:,} of {count + len(self.images):,} files in {shown(root)} are not read: "
            f"{', '.join(kinds)}; files are read that end in {_SUFFIXES}: convert or rename those "
            "that are images"
        ]


def find_images(root: Path) -> Found:
    """All image files below a folder, through links too; hidden files and folders are left out.

    The order depends on names alone. A link back to a folder that it lies in is not followed.
    Raises DataError for folders that cannot be read, that are nested too deep or too many."""
    found = Found()
    _search(root, (), set(), found)
    return found


def _search(folder: Path, parts: tuple[str, ...], above: set[tuple[int, int]], to: Found) -> None:
    to.folders += 1
    if len(parts) > _MAX_DEPTH or to.folders > _MAX_FOLDERS:
        raise DataError(
            f"data: {shown(folder)}: folders nested more than {_MAX_DEPTH} deep, or more than "
            f"{_MAX_FOLDERS:,} of them; see whether links lead in circles"
        )
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"data: cannot list {shown(folder)}: {error.strerror}; check its permissions and the "
            "disk"
        ) from error
    folders, place_of_all = [], "/".join(parts)
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        if _is(entry, os.DirEntry.is_dir):
            folders.append(name)
            continue
        place = name.rfind(".")
        suffix = name[place:].lower() if place > 0 else "without an ending"
        if suffix not in IMAGE_SUFFIXES:
            to.ignored[suffix] += 1
        elif _is(entry, os.DirEntry.is_file):
            to.images.add(place_of_all, name)
        else:
            to.ignored[_NO_FILE] += 1
    for name in folders:
        _search(folder / name, (*parts, name), above | {identity}, to)


def _is(entry: os.DirEntry[str], test: Callable[[os.DirEntry[str]], bool]) -> bool:
    """What an entry is; a link to itself, which raises, is nothing."""
    try:
        return test(entry)
    except OSError:
        return False


class FileReader(ImageReader, HasEncoded):
    """Image files below a folder.

    paths: relative to `root`, with `/`. details: what was found out on opening.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        channels: int,
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str] | None,
        details: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> None:
        self._root = str(root)
        self._paths = paths if isinstance(paths, PathTable) else PathTable(paths)
        self.channels = channels
        self.labels = labels
        self.class_names = class_names
        self.details = details
        self.notes = tuple(notes)
        self.image_size = self._probe()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode_image(self.encoded(index), self.channels, partial(self.describe, index))

    def describe(self, index: int) -> str:
        return shown(f"{self._root}/{self._paths[index]}")

    def key(self, index: int) -> str:
        """The path below the folder."""
        return self._paths[index]

    def encoded_sizes(self) -> NDArray[np.int64]:
        """Bytes of each file; 0 for one that has vanished."""
        return self._sizes

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return np.fromiter((self._size(path) for path in self._paths), np.int64, len(self._paths))

    def encoded(self, index: int) -> bytes:
        return read_image_file(f"{self._root}/{self._paths[index]}")

    def fingerprint(self) -> str:
        """Covers the relative path and the size of every file, the whole content of 64 of them, and
        the labels. Not times, so copies have the same. Pixels that change within an equal size can
        be missed; everything else is seen."""
        digest = hashlib.blake2b(f"{self.channels}".encode(), digest_size=8)
        for path, size in zip(self._paths, self._sizes.tolist(), strict=True):
            digest.update(b"\0%s\0%d" % (os.fsencode(path), size))
        for index in sample_positions(len(self), "files", _PROBED_IMAGES):
            digest.update(hashlib.blake2b(self._sampled(index)).digest())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def _size(self, path: str) -> int:
        try:
            return os.stat(f"{self._root}/{path}").st_size  # noqa: PTH116 (3x faster)
        except OSError:
            return 0

    def _sampled(self, index: int) -> bytes:
        """The content for the fingerprint; nothing of what cannot be read, as far as it is
        known."""
        try:
            return self.encoded(index)
        except UnreadableImageError:
            return b""

    def _probe(self) -> tuple[int, int] | None:
        """The size that a sample of the images has in common."""
        sizes = []
        for index in sample_positions(len(self), "probe", _PROBED_IMAGES):
            try:
                sizes.append(image_size(self.encoded(index)))
            except (UnreadableImageError, OSError):
                continue
            if sizes[-1] != sizes[0]:
                return None
        return common_size(sizes)


def refuse_outside(field: str, root: Path, paths: Sequence[str]) -> None:
    """Raises RecipeError where a file that an annotation names is missing, is no regular file, or
    is a link that leads out of the folder."""
    inside = os.path.realpath(root)
    for path in paths:
        whole = root / path
        if not is_regular(whole):
            raise missing(field, whole, "a file for each image")
        if not is_inside(inside, str(whole)):
            raise RecipeError(
                f"{field}: {whole} is a link that leads out of {root}; expected a file in it"
            )
