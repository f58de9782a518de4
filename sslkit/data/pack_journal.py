"""What is known of a pack that is being written, so that a killed process loses a second of work.

Beside the pack F stand `F.partial`, the pixels, and `F.journal`: a line with what is to be written,
then a line for each block of images that is on the disk, each with a checksum.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from sslkit.data.pack_format import CHECKSUM_BYTES, Description, Split, Unreadable, checksum, hashed
from sslkit.errors import RecipeError
from sslkit.files import flush, read_bytes

_FLUSH_EVERY_S = 1.0
_MAX_BYTES = 256 << 20
"""Bytes of a journal: that of a million blocks of 4 MiB."""


class BlockRecord(BaseModel):
    """A block of images that has been written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    split: str
    block: NonNegativeInt
    checksum: str
    """Hexadecimal."""
    unreadable: tuple[Unreadable, ...] = ()


class Journal:
    """The files of an unfinished pack.

    `plan` is the description as far as it is known before any image is read. Where a journal with
    the same plan exists, `done` holds its blocks; with another one, RecipeError says what differs.
    `pixels_end` is where the pixels end in the file. OSErrors pass.
    """

    def __init__(self, out: Path, plan: Description, pixels_end: int) -> None:
        self.partial = out.with_name(out.name + ".partial")
        self._path = out.with_name(out.name + ".journal")
        self.done: dict[str, list[BlockRecord]] = {name: [] for name in plan.splits()}
        """Split -> its blocks, in order and without gaps."""
        self._lock = threading.Lock()
        self._waiting: list[BlockRecord] = []
        self._flushed = time.monotonic()
        good_bytes = self._load(plan, pixels_end) if self.partial.exists() else 0
        if not good_bytes:
            self.partial.unlink(missing_ok=True)
        self._file = self.partial.open("r+b" if good_bytes else "x+b", buffering=0)
        if not good_bytes:
            self.cut(pixels_end)
            self.sync()
        self._log = self._path.open("r+b" if good_bytes else "wb")
        self._log.seek(good_bytes)
        self._log.truncate()  # a torn last line
        if not good_bytes:
            self._append(plan.model_dump_json())

    def write(self, place: int, data: bytes | memoryview) -> None:
        """Writes a part of the file. May be called from any thread."""
        view = memoryview(data)
        with self._lock:
            self._file.seek(place)
            while len(view):
                view = view[self._file.write(view) :]

    def add(self, record: BlockRecord) -> None:
        """Notes a written block, in order. It reaches the disk within about a second."""
        self.done[record.split].append(record)
        self._waiting.append(record)
        if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Brings pixels to the disk, and then the lines that say so."""
        if not self._waiting:
            return
        self.sync()
        self._append(*(record.model_dump_json() for record in self._waiting))
        self._waiting.clear()
        self._flushed = time.monotonic()

    def cut(self, length: int) -> None:
        """Sets the length of the file."""
        self._file.truncate(length)

    def sync(self) -> None:
        """Waits until the file is on the disk."""
        os.fsync(self._file.fileno())

    def finish(self, out: Path) -> None:
        """Gives the pack its name, when all of it is written, and removes the journal."""
        self.sync()
        self.close()
        self.partial.replace(out)
        flush(out.parent)
        self._path.unlink()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        self._file.close()
        self._log.close()

    def _append(self, *lines: str) -> None:
        self._log.write(b"".join(_sealed(line.encode()) + b"\n" for line in lines))
        self._log.flush()
        os.fsync(self._log.fileno())

    def _load(self, plan: Description, pixels_end: int) -> int:
        """Fills `done`. Returns the length of what is good in the journal; 0: start afresh."""
        try:
            text = read_bytes(self._path, _MAX_BYTES, inside=self._path.parent)
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise RecipeError(f"{self._path}: {error}; delete it to start afresh") from error
        lines = text.split(b"\n")[:-1]  # what follows the last \n is torn
        try:
            begun = Description.model_validate_json(_unsealed(lines[0]) if lines else b"")
        except ValidationError:
            return 0
        if begun != plan:
            raise RecipeError(
                f"{self.partial}: was begun with {_difference(begun, plan)}; give what it was "
                "begun with to go on, or delete it to start afresh"
            )
        if self.partial.stat().st_size < pixels_end:
            return 0
        good = len(lines[0]) + 1
        with self.partial.open("rb") as file:
            for line in lines[1:]:
                try:
                    record = BlockRecord.model_validate_json(_unsealed(line))
                except ValidationError:
                    break
                known = self.done.get(record.split)
                if known is None or record.block != len(known):
                    break
                if not _is_written(file, plan.splits()[record.split], record):
                    break  # changed since: it and what follows is made again
                known.append(record)
                good += len(line) + 1
        return good


def _sealed(line: bytes) -> bytes:
    """A line of the journal, with its checksum behind it."""
    return line + b" " + checksum(line).hexdigest().encode()


def _unsealed(line: bytes) -> bytes:
    """The line again; nothing where it is not as it was written."""
    text = line[: -2 * CHECKSUM_BYTES - 1]
    return text if _sealed(text) == line else b""


def _is_written(file: BinaryIO, split: Split, record: BlockRecord) -> bool:
    """Whether the pixels of a block are those that the record is of."""
    if record.block >= split.num_blocks:
        return False
    first, count = split.block(record.block)
    start = split.pixels + first * split.image_bytes
    return hashed(file, start, count * split.image_bytes).hexdigest() == record.checksum


def _difference(begun: Description, wanted: Description) -> str:
    """The first field in which two descriptions differ, in words."""
    before, after = _flat(begun.model_dump()), _flat(wanted.model_dump())
    for key in [*before, *after]:
        if before.get(key) != after.get(key):
            return f"{key} {_short(before.get(key))}, now {_short(after.get(key))}"
    return "another description"


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
