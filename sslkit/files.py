"""Reading files that may come from strangers, and writing files whole.

Read are regular files alone, of a bounded size, and through no link: a folder that somebody sent
may hold a link to `/dev/zero`, a FIFO, or a gigabyte of `[`. Every function that reads raises
OSError or ValueError, whose text `reason` puts into one line.

Written is so that a reader, or a crash, sees the old content or the new, never a part.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sslkit.errors import message_of

MAX_JSON_BYTES = 16 << 20
"""Bytes of one document. Parsed, the worst of that size takes about 500 MB for a moment."""
_CHUNK_BYTES = 1 << 20
_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # a FIFO would wait
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_WALKS = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_file(path: Path, *, inside: Path | None = None, most: int | None = None) -> BinaryIO:
    """Opens a regular file for reading.

    inside: a folder in which the file must really lie: no part of the path below it may be a link
    or `..`. What a folder holds can be changed while it is read, so links are refused as the file
    is opened and not before. most: bytes that the file may have."""
    handle = os.open(path, _OPEN | _NO_WAIT) if inside is None else _open_inside(path, inside)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        if most is not None and status.st_size > most:
            raise ValueError(f"is larger than {_size(most)}")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _open_inside(path: Path, inside: Path) -> int:
    if not path.is_relative_to(inside):
        raise ValueError(f"lies outside {inside}")
    *folders, name = path.relative_to(inside).parts or ("",)
    if not name or ".." in (*folders, name):
        raise ValueError(f"is no file in {inside}")
    if not _WALKS:  # Windows: no links without special rights
        if any(part.is_symlink() for part in (path, *path.parents) if part != inside):
            raise ValueError("is or lies behind a link")
        return os.open(path, _OPEN | _NO_WAIT)
    at = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, _OPEN | _NO_WAIT | _NO_LINK, dir_fd=at)
    except OSError as error:
        if _is_link(path, inside):
            raise ValueError("is or lies behind a link, which a folder may not hold") from error
        raise
    finally:
        os.close(at)


def _is_link(path: Path, inside: Path) -> bool:
    parts = (path, *path.parents)
    return any(part.is_symlink() for part in parts[: len(path.relative_to(inside).parts)])


def read_bytes(path: Path, most: int, *, inside: Path | None = None) -> bytes:
    """The whole file. Files of the system that give no size are bounded too."""
    with open_file(path, inside=inside, most=most) as file:
        data = b"".join(chunks(file, most + 1))  # one read would take `most` bytes of memory
    if len(data) > most:
        raise ValueError(f"is larger than {_size(most)}")
    return data


def read_text(path: Path, most: int = MAX_JSON_BYTES, *, inside: Path | None = None) -> str:
    """The whole file, which must be UTF-8."""
    return read_bytes(path, most, inside=inside).decode("utf-8")


def read_json(path: Path, most: int = MAX_JSON_BYTES, *, inside: Path | None = None) -> Any:
    """A JSON document; see `parse_json`."""
    return parse_json(read_bytes(path, most, inside=inside))


def parse_json(data: bytes) -> Any:
    """A JSON document from UTF-8. Refuses (ValueError) what no writer of ours makes: a key that
    stands twice in one object, nesting of hundreds, numbers of thousands of digits, and halves of
    characters, which could not be written again."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if _SURROGATE.search(data):
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"has the key {twice[:60]!r} twice in one object")
    return found


def bounded_lines(file: BinaryIO, longest: int) -> Iterator[tuple[bytes | None, int]]:
    """(line with its newline, its length in bytes). A longer line, and a last one that has no
    newline, are None, and never in memory as a whole."""
    while part := file.readline(longest):
        line, length = part, len(part)
        while not part.endswith(b"\n") and (part := file.readline(longest)):
            length += len(part)
        yield (line if line.endswith(b"\n") else None), length


def chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file, a part at a time; ends early where the file does."""
    while size > 0 and (part := file.read(min(size, _CHUNK_BYTES))):
        size -= len(part)
        yield part


def reason(error: BaseException) -> str:
    """Why a file could not be read, for the end of a one-line message."""
    if isinstance(error, UnicodeError):
        return "is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"is no JSON: {error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return message_of(error)


def _size(number: int) -> str:
    return f"{number >> 20} MiB" if number >= 1 << 20 else f"{number} bytes"


# --- Writing --------------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|(saving|encoder)\.tmp")
"""The names that files have until they are whole, and those that older versions gave them."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to be written by its name: it becomes `path` at the end of the
    block, flushed to the disk, and is removed where the block raises.

    Raises OSError; the old file is then as it was."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o666 & ~UMASK)  # mkstemp and safetensors let only the owner read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)  # the rename survives a power cut, too


def write_atomic(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8). Raises OSError; the old file is then as it was."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Makes a file, or what a folder lists, survive a power cut, where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Removes `leftovers`. Only for whoever holds the lock of the folder: nobody else writes
    there."""
    for path in leftovers(folder):
        with suppress(OSError):
            path.unlink()


def leftovers(folder: Path) -> list[Path]:
    """The parts of files that were being written in a folder, or in those in it, as their process
    was killed: while nobody holds its lock."""
    inside = (each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())
    return [
        path
        for place in (folder, *inside)
        for path in place.iterdir()
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink()
    ]


def remove_parts(path: Path) -> None:
    """Removes what processes that were killed had written of one file or folder. Only for whoever
    keeps others from writing it."""
    for part in path.parent.iterdir():
        if not (part.name.startswith(f".{path.name}.") and _TEMPORARY.fullmatch(part.name)):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # once: reading it sets it for a moment, for all threads
