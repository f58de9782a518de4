"""Keeping memory that was freed, on a CPU. A step frees what the next one needs again; glibc hands
large pieces back to the system, which gives them anew page by page, each filled with zeros."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`: how much may stay free at the end of the heap, and how many pieces
may be memory of their own, which goes back to the system when it is freed."""


def keep_freed_memory() -> bool:
    """Has this process keep all memory that it frees from now on, to use it again, as torch does on
    a GPU. Returns whether it could: elsewhere than with glibc nothing changes. Once and for all, as
    there is no way to ask what was set before."""
    try:
        version, set_option = ctypes.CDLL(None).gnu_get_libc_version, ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(version and set_option(_M_MMAP_MAX, 0) and set_option(_M_TRIM_THRESHOLD, -1))
