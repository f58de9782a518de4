"""Threads that get in each other's way as often as they can.

A race between two lines of Python is rare where each takes a microsecond. Here every line of the
component, and of the libraries that it calls, lets the other threads go first, so that what threads
share without a lock is mixed up at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch

import sslkit

THREADS = 8
_SWITCH_S = 1e-6
_PAUSE_S = 1e-6
"""What a thread sleeps at a line; the system makes some 50 microseconds of it."""
_MOST_LINES = 300
"""Lines of a call that pause: loops over pixels would take for ever."""
_LEFT_ALONE = (*(str(Path(m.__file__).parent) for m in (sslkit, torch, np) if m.__file__), "<")
"""Where lines do not pause unless they are the component's: what is known to be safe."""

Given = TypeVar("Given")
Made = TypeVar("Made")


def at_once(work: Callable[[Given], Made], given: Sequence[Given], *tried: object) -> list[Made]:
    """The work on each, by several threads at once. tried: objects whose classes' lines let the
    other threads go first."""
    files = {name for each in tried for name in _files_of(type(each))}

    def paused(one: Given) -> Made:
        before = sys.gettrace()
        sys.settrace(_pausing(files))
        try:
            return work(one)
        finally:
            sys.settrace(before)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(paused, given))
    finally:
        sys.setswitchinterval(interval)


def _files_of(cls: type) -> set[str]:
    """The files that a class and its bases are written in, but for those of the contracts."""
    modules = {
        base.__module__ for base in cls.__mro__ if not base.__module__.startswith("builtins")
    }
    found = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
    return {name for name in found if name is not None}


def _pausing(files: set[str]) -> Callable[[FrameType, str, Any], Any]:
    lines = 0

    def at_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            time.sleep(_PAUSE_S)
        return at_line if lines < _MOST_LINES else None

    def at_call(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        pauses = name in files or not name.startswith(_LEFT_ALONE)
        return at_line if pauses and lines < _MOST_LINES else None

    return at_call
