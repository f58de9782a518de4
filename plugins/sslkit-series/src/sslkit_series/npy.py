"""Reading `.npy` files that may come from strangers: no pickles, nothing but regular files, no more
memory than the array has. They are read and not mapped: a file that is cut off meanwhile, or a disk
that fails, is then an error and not the end of the process."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

MAX_VALUES = 1 << 26
"""67 million: a longer series is refused unread."""

_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO would wait for a writer before it can be refused
    | getattr(os, "O_BINARY", 0)
)
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
_MAX_HEADER_BYTES = 1 << 16


class BadSeriesError(Exception):
    """A file that holds no series; the message says why, in a few words."""


def read_series(path: str, wanted: tuple[int, int] | None = None) -> NDArray[Any]:
    """The array of a file, (C, L), or (L,) as (1, L). wanted: its shape, held against the header
    before anything else is read. Raises BadSeriesError, and OSError for faults that may pass."""
    with _opened(path) as file:
        shape, in_columns, dtype = _checked_header(file)
        if wanted is not None and _as_series(shape) != wanted:
            raise BadSeriesError(f"has shape {_as_series(shape)} and the first {wanted}")
        size = math.prod(shape) * dtype.itemsize
        data = file.read(size)
    if len(data) < size:
        raise BadSeriesError("ends before its last value")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if in_columns else "C")
    return values.reshape(_as_series(shape))


def series_shape(path: str) -> tuple[int, int]:
    """(C, L) of the array of a file, from its header. Raises what `read_series` raises."""
    with _opened(path) as file:
        return _as_series(_checked_header(file)[0])


def _as_series(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _opened(path: str) -> BinaryIO:
    handle = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadSeriesError("is no regular file")
    return os.fdopen(handle, "rb")


def _checked_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    shape, in_columns, dtype = _header(file)
    _check(shape, dtype, os.fstat(file.fileno()).st_size - file.tell())
    return shape, in_columns, dtype


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type."""
    try:
        version = npy_format.read_magic(file)
        if version not in _HEADERS:
            raise BadSeriesError(f"is of version {version[0]}.{version[1]}; valid are 1.0 and 2.0")
        _refuse_long_header(file, version)
        return _HEADERS[version](file)  # type: ignore[no-any-return]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        raise BadSeriesError("is no .npy file") from None


def _refuse_long_header(file: BinaryIO, version: tuple[int, int]) -> None:
    """numpy reads the whole of a header before it looks at its length."""
    at, count = file.tell(), 2 if version == (1, 0) else 4
    if int.from_bytes(file.read(count), "little") > _MAX_HEADER_BYTES:
        raise BadSeriesError("has a header that no array needs")
    file.seek(at)


def _check(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    """Raises BadSeriesError unless this is a series that the rest of the file holds."""
    if dtype.kind not in "fiu":
        raise BadSeriesError(f"holds {dtype}; valid are floating-point and whole numbers")
    if len(shape) not in (1, 2) or min(shape) < 1 or any(type(side) is not int for side in shape):
        raise BadSeriesError(f"has shape {shape}; valid is (length,) or (channels, length)")
    if math.prod(shape) > MAX_VALUES:
        raise BadSeriesError(f"has {math.prod(shape):,} values; valid are up to {MAX_VALUES:,}")
    if math.prod(shape) * dtype.itemsize > size:
        raise BadSeriesError("ends before its last value")
