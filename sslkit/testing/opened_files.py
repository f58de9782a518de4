"""Which files are read meanwhile, by whatever opens them through Python."""

from __future__ import annotations

import builtins
import io
import os
import sqlite3
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

_DOORS = (
    (builtins, "open"), (io, "open"), (os, "open"), (tarfile, "bltn_open"), (sqlite3, "connect")
)  # fmt: skip
_CODE = frozenset({".py", ".pyc", ".pyi", ".so", ".pth"})
_LIBRARIES = frozenset({"site-packages", "dist-packages"})
_OF_THE_SYSTEM = (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev", "/etc")


@contextmanager
def watched_files() -> Iterator[set[str]]:
    """Gives the set to which each file is added that is opened, by its whole path; without code,
    and what libraries and the system bring. What a library opens without Python's help, as Arrow
    does, is not seen.

    An audit hook would see more, but can never be taken off, and no thread may set a trace while
    one in Python runs."""
    seen: set[str] = set()
    with ExitStack() as doors:
        for module, name in _DOORS:
            usual = getattr(module, name)
            doors.enter_context(patch.object(module, name, _noting(usual, seen)))
        yield seen
    seen.intersection_update({path for path in seen if _is_data(Path(path))})


def _noting(usual: Callable[..., Any], seen: set[str]) -> Callable[..., Any]:
    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, (str, bytes, os.PathLike)):
            seen.add(os.path.abspath(os.fsdecode(file)))  # noqa: PTH100  (keeps links)
        return usual(file, *args, **kwargs)

    return opened


def _is_data(path: Path) -> bool:
    return (
        path.is_file()
        and path.suffix not in _CODE
        and not _LIBRARIES.intersection(path.parts)
        and not any(path.is_relative_to(place) for place in _OF_THE_SYSTEM)
    )
