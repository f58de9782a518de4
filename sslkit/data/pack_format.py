"""The file format of packs: what lies where, and how a file is checked before it is trusted.

    0        prefix, 64 bytes: magic, format version, length and place of the description, size of
             the file, BLAKE2b-256 of the description
    4096     for each split, train first and aligned to 4096 bytes:
               pixels, (N, C, H, W) uint8
               labels, (N,) int64, where there are any
               checksums, one BLAKE2b-128 for each block of images
    end      description: JSON, `Description`; it holds the places of all the rest

All numbers are little-endian. Opening a pack checks sizes, the description and the tables, and
reads no pixels; `verify` in `pack.py` compares the pixels with their checksums.

The prefix is written last: a file without it is no pack.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from sslkit.errors import DataError, RecipeError
from sslkit.nn.image import Interpolation

MAGIC = b"sslpack\n"
VERSION = 1
ALIGNMENT = 4096
CHECKSUM_BYTES = 16
MAX_DESCRIPTION_BYTES = 16 * 2**20
"""What is longer is refused unread, so that no file can make its reader run out of memory."""

_PREFIX = struct.Struct("<8sIIQQ32s")
PREFIX_BYTES = _PREFIX.size
_BLOCK_BYTES = 4 * 2**20
_HASHED_AT_ONCE = 2**20
_MAX_CLASSES = 2**24


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Settings(_Record):
    """How images became the pixels of a pack."""

    size: PositiveInt | None
    """Side of the square that the centre of each image was cut to, after its shorter side had been
    resized to it with antialiasing. None: the images are as the source gave them."""
    interpolation: Interpolation
    """The filter of the resize."""


class Unreadable(_Record):
    """An image that could not be read, and the one whose pixels and label stand in its place."""

    index: NonNegativeInt
    image: str
    reason: str
    replaced_by: NonNegativeInt


class Split(_Record):
    """One split: N images of one shape, and where their parts are in the file (in bytes)."""

    num_images: PositiveInt
    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    block_images: PositiveInt
    """Images that share a checksum."""
    pixels: NonNegativeInt
    labels: NonNegativeInt | None
    checksums: NonNegativeInt
    class_names: tuple[str, ...] | None
    source_fingerprint: str
    tables_digest: str = ""
    """`tables_digest` of labels and checksums."""
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.num_images, self.channels, self.height, self.width

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.channels * self.height * self.width

    @property
    def num_blocks(self) -> int:
        """Blocks of images with a checksum each; the last may be shorter."""
        return -(-self.num_images // self.block_images)

    def block(self, number: int) -> tuple[int, int]:
        """(first image, number of images) of a block."""
        first = number * self.block_images
        return first, min(self.block_images, self.num_images - first)

    def sections(self) -> Iterator[tuple[str, int, int, int]]:
        """(name, place, bytes, alignment) of the parts of the file that belong to this split."""
        yield "pixels", self.pixels, self.num_images * self.image_bytes, ALIGNMENT
        if self.labels is not None:
            yield "labels", self.labels, 8 * self.num_images, 8
        yield "checksums", self.checksums, CHECKSUM_BYTES * self.num_blocks, 8


class Description(_Record):
    """What a pack says about itself."""

    sslkit: str
    """The version that wrote it."""
    source: dict[str, Any]
    """The `data` block that was packed."""
    settings: Settings
    train: Split
    test: Split | None
    notes: tuple[str, ...] = ()
    """What the images that were packed showed, such as test images among the training images."""

    def splits(self) -> dict[str, Split]:
        """Name -> split, of those that exist."""
        return {"train": self.train} | ({"test": self.test} if self.test is not None else {})


def block_images(image_bytes: int) -> int:
    """How many images share a checksum: as many as make 4 MiB, at least one."""
    return max(1, _BLOCK_BYTES // image_bytes)


def aligned(place: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of `alignment`."""
    return -(-place // alignment) * alignment


def end_of(splits: dict[str, Split]) -> int:
    """Where the last section of the splits ends."""
    return max(place + size for s in splits.values() for _, place, size, _ in s.sections())


def prefix_of(description: bytes, place: int) -> bytes:
    """The first 64 bytes of the pack whose description stands at `place`, at the end."""
    digest = hashlib.blake2b(description, digest_size=32).digest()
    size = place + len(description)
    return _PREFIX.pack(MAGIC, VERSION, len(description), place, size, digest)


def checksum(block: memoryview | bytes = b"") -> hashlib.blake2b:
    """The checksum of the pixels of a block, or of a table; `update` adds more."""
    return hashlib.blake2b(block, digest_size=CHECKSUM_BYTES)


def hashed(file: BinaryIO | RawIOBase, start: int, size: int) -> hashlib.blake2b:
    """The checksum of a part of a file, read piece by piece."""
    digest = checksum()
    file.seek(start)
    while size > 0 and (piece := file.read(min(_HASHED_AT_ONCE, size))):
        digest.update(piece)
        size -= len(piece)
    return digest


def tables_digest(tables: Iterable[hashlib.blake2b]) -> str:
    """One digest for those of the labels (where there are any) and the checksums."""
    return checksum(b"".join(table.digest() for table in tables)).hexdigest()


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackFile:
    """A pack whose description and tables have been checked."""

    path: Path
    description: Description

    def pixels(self, split: Split) -> NDArray[np.uint8]:
        """(N, C, H, W), memory-mapped and read-only: nothing is read before it is used."""
        return np.memmap(self.path, np.uint8, "r", split.pixels, split.shape)

    def labels(self, split: Split) -> NDArray[np.int64] | None:
        """(N,) class indices, memory-mapped; None without labels."""
        if split.labels is None:
            return None
        stored = np.memmap(self.path, "<i8", "r", split.labels, (split.num_images,))
        return stored.astype(np.int64, copy=False)

    def is_whole(self, split: Split, number: int) -> bool:
        """Whether the pixels of a block match their checksum. Raises OSError.

        Reads the file instead of mapping it, so that a fault of the disk is an error and not the
        end of the process."""
        first, count = split.block(number)
        start, size = split.pixels + first * split.image_bytes, count * split.image_bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(split.checksums + number * CHECKSUM_BYTES)
            expected = file.read(CHECKSUM_BYTES)
            return hashed(file, start, size).digest() == expected

    def fingerprint(self, split: Split) -> str:
        """Covers every pixel (by the checksums, which `tables_digest` covers), every label, the
        shape and the class names."""
        text = f"{split.shape}\0{split.tables_digest}\0" + "\0".join(split.class_names or ())
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_pack(path: Path) -> PackFile:
    """Opens a pack and checks all but its pixels.

    Reads no more than MAX_DESCRIPTION_BYTES at once, whatever the file claims. Raises RecipeError
    where there is no file, DataError where it is no whole pack."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise RecipeError(f"{path}: {what}; expected a pack, which `sslkit pack` writes")
    try:
        with path.open("rb") as file:
            description = _read_description(file, path)
            for name, split in description.splits().items():
                _check_tables(file, f"{path}: {name}", split)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    pack = PackFile(path, description)
    for name, split in description.splits().items():
        _check_labels(f"{path}: {name}", split, pack.labels(split))
    return pack


def _read_description(file: BinaryIO, path: Path) -> Description:
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise DataError(f"{path}: is not a pack; `sslkit pack` writes them")
    _, version, length, place, claimed, digest = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise DataError(
            f"{path}: is a pack of format {version}, and this version of sslkit reads format "
            f"{VERSION}; pack the data again"
        )
    if size != claimed:
        raise DataError(
            f"{path}: has {size:,} bytes and should have {claimed:,}; copy or pack it again"
        )
    if length > MAX_DESCRIPTION_BYTES or place + length != claimed or place < ALIGNMENT:
        raise DataError(
            f"{path}: is damaged (a description of {length:,} bytes at {place:,}); "
            "copy or pack it again"
        )
    file.seek(place)
    text = file.read(length)
    if hashlib.blake2b(text, digest_size=32).digest() != digest:
        raise DataError(f"{path}: its description is damaged; copy or pack it again")
    try:
        description = Description.model_validate_json(text)
        json.dumps(description.source, allow_nan=False)  # it is recorded with every run
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise DataError(
                f"{path}: its description is not valid (source: holds what JSON cannot); pack the "
                "data again"
            ) from error
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: its description is not valid ({where}: {first['msg']}); pack the data again"
        ) from error
    for name, split in description.splits().items():
        for section, start, count, alignment in split.sections():
            if start < ALIGNMENT or start % alignment or start + count > place:
                raise DataError(
                    f"{path}: is damaged (the {section} of {name} take {count:,} bytes at "
                    f"{start:,}); copy or pack it again"
                )
    return description


def _check_tables(file: BinaryIO, where: str, split: Split) -> None:
    parts = (part for part in split.sections() if part[0] != "pixels")
    tables = [hashed(file, start, size) for _, start, size, _ in parts]
    if tables_digest(tables) != split.tables_digest:
        raise DataError(f"{where}: labels or checksums are damaged; copy or pack it again")


def _check_labels(where: str, split: Split, labels: NDArray[np.int64] | None) -> None:
    if labels is None:
        return
    valid = _MAX_CLASSES if split.class_names is None else len(split.class_names)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < -1 or highest >= valid:
        raise DataError(
            f"{where}: labels run from {lowest} to {highest}; valid is -1 to {valid - 1}; "
            "pack the data again"
        )
