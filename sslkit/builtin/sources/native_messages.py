"""What libraries in C print while an image is decoded, taken from the thread that decodes it.

libjpeg says `Corrupt JPEG data: ...` on C's `stderr`, without the name of the file, and goes on.
Here `stderr` of the C library (not the file descriptor 2, which is that of the whole process)
becomes a stream that asks which thread writes. Other threads' text goes where it always went.
Where the C library has no such streams nothing changes: it is the messages that differ, never the
pixels.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_WRITE = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t
)
_UNBUFFERED = 2
_of_thread = threading.local()


class _Functions(ctypes.Structure):
    """glibc's `cookie_io_functions_t`: read, write, seek, close."""

    _fields_ = (
        ("read", ctypes.c_void_p),
        ("write", _WRITE),
        ("seek", ctypes.c_void_p),
        ("close", ctypes.c_void_p),
    )


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collects what C code prints to `stderr` in this thread meanwhile, a line each."""
    _install()
    lines: list[bytes] = []
    before = getattr(_of_thread, "lines", None)
    _of_thread.lines = lines
    said: list[str] = []
    try:
        yield said
    finally:
        _of_thread.lines = before
        said += b"".join(lines).decode("utf-8", "replace").splitlines()


def _write(_cookie: int, text: ctypes._Pointer[ctypes.c_char], size: int) -> int:
    data = ctypes.string_at(text, size)
    lines = getattr(_of_thread, "lines", None)
    if lines is None:
        return os.write(2, data)
    lines.append(data)
    return size


_functions = _Functions(None, _WRITE(_write), None, None)  # for good: C keeps pointers into it


@cache
def _install() -> None:
    """Replaces `stderr` of the C library, until the interpreter ends."""
    library = ctypes.CDLL(None)
    try:
        opened, stream = library.fopencookie, ctypes.c_void_p.in_dll(library, "stderr")
    except (AttributeError, ValueError):  # not glibc
        return
    opened.restype = ctypes.c_void_p
    opened.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Functions)
    made = opened(None, b"w", _functions)
    if not made:
        return
    library.setvbuf(ctypes.c_void_p(made), None, _UNBUFFERED, ctypes.c_size_t(0))
    original = stream.value
    stream.value = made
    atexit.register(setattr, stream, "value", original)
