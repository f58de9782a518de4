"""A reader over image files, and the search for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.builtin.sources.decoding import decode_image, image_size
from sslkit.builtin.sources.locations import common_size, sample_positions
from sslkit.errors import DataError
from sslkit.interfaces import ImageReader, UnreadableImageError

_SUFFIXES = ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split(" "))
"""Endings of the files that are taken for images, in small letters."""

_PROBED_IMAGES = 64


@dataclass
class Found:
    """What a search through a folder brought up."""

    images: list[tuple[str, ...]] = field(default_factory=list)
    """Path parts below the folder, in order of their names, folder by folder."""
    ignored: int = 0
    """Files without an image's ending, and links that lead nowhere."""


def find_images(root: Path) -> Found:
    """All image files below a folder, through links too; hidden files and folders are left out.

    The order depends on names alone. A link back to a folder that it lies in is not followed.
    Raises DataError for folders that cannot be read.
    """
    found = Found()
    _search(root, (), set(), found)
    return found


def _search(folder: Path, parts: tuple[str, ...], above: set[tuple[int, int]], to: Found) -> None:
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan), key=lambda entry: entry.name)
        folders = [entry.name for entry in entries if entry.is_dir()]
        files = [entry for entry in entries if not entry.is_dir()]
    except OSError as error:
        raise DataError(
            f"data: cannot list {folder}: {error.strerror}; check its permissions and the disk"
        ) from error
    for entry in files:
        if entry.name.startswith("."):
            continue
        suffix = entry.name[entry.name.rfind(".") :].lower()
        if suffix in IMAGE_SUFFIXES and entry.is_file():
            to.images.append((*parts, entry.name))
        else:
            to.ignored += 1
    for name in folders:
        if not name.startswith("."):
            _search(folder / name, (*parts, name), above | {identity}, to)


class FileReader(ImageReader):
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
        details: Mapping[str, str | int | None],
    ) -> None:
        self._root = str(root)
        self._paths = paths
        self.channels = channels
        self.labels = labels
        self.class_names = class_names
        self.details = details
        self.image_size = self._probe()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode_image(self._bytes(index), self.channels)

    def describe(self, index: int) -> str:
        return f"{self._root}/{self._paths[index]}"

    def fingerprint(self) -> str:
        """Covers the relative path and the size of every file, the whole content of 64 of them, and
        the labels. Not times, so copies have the same. Pixels that change within an equal size can
        be missed; everything else is seen."""
        digest = hashlib.blake2b(f"{self.channels}".encode(), digest_size=8)
        for path in self._paths:
            size = Path(self._root, path).stat().st_size
            digest.update(f"\0{path}\0{size}".encode())
        for index in sample_positions(len(self), "files", _PROBED_IMAGES):
            digest.update(hashlib.blake2b(self._bytes(index)).digest())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def _bytes(self, index: int) -> bytes:
        with open(f"{self._root}/{self._paths[index]}", "rb") as file:  # noqa: PTH123 (3x faster)
            return file.read()

    def _probe(self) -> tuple[int, int] | None:
        """The size that a sample of the images has in common."""
        sizes = []
        for index in sample_positions(len(self), "probe", _PROBED_IMAGES):
            try:
                sizes.append(image_size(self._bytes(index)))
            except (UnreadableImageError, OSError):
                continue
            if sizes[-1] != sizes[0]:
                return None
        return common_size(sizes)
