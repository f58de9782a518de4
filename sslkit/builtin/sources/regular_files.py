"""Reading files that may come from strangers: regular ones only, of bounded size, where asked
inside one folder. Devices, FIFOs and sockets are refused before anything is read of them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sslkit.api import UnreadableImageError

MAX_FILE_BYTES = 1 << 29
"""512 MiB: larger image files are refused unread."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Non-blocking: opening a FIFO would otherwise wait for a writer, before it can be told from a file.


class NoRegularFileError(OSError):
    """A device, a FIFO, a socket or a folder where a file is expected."""


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file, and one more than `most` of a file that has more. Raises
    OSError, among them NoRegularFileError."""
    try:
        handle = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NoRegularFileError(0, "is no regular file") from error
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NoRegularFileError(0, "is no regular file")
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb", buffering=0) as file:
        data = file.read(min(status.st_size, most) + 1)  # as much memory as there is to read
        while data is not None and len(data) < min(status.st_size, most):
            more = file.read(min(status.st_size, most) - len(data))
            if not more:
                break  # it has been cut meanwhile
            data += more
    return data or b""


def read_image_file(path: str | Path) -> bytes:
    """The bytes of an image file. Raises UnreadableImageError for what is no regular file and for a
    file above MAX_FILE_BYTES, OSError for faults that may pass."""
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except NoRegularFileError as error:
        raise UnreadableImageError(error.strerror) from error
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableImageError(f"more than {MAX_FILE_BYTES:,} bytes")
    return data


def is_regular(path: str | Path) -> bool:
    """Whether there is a regular file, behind links or not."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (3x faster)
    except (OSError, ValueError):
        return False


def is_inside(folder: str, path: str) -> bool:
    """Whether a path, every link in it followed, lies in a folder. folder: from
    `os.path.realpath`."""
    real = os.path.realpath(path)
    return real.startswith(folder.rstrip(os.sep) + os.sep)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that any file and terminal takes: bytes of a name that are no UTF-8 as
    \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
