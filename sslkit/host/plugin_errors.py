"""What went wrong inside a plugin, in one line."""

from __future__ import annotations

import io
import os
import sysconfig
import traceback
from importlib.metadata import entry_points
from pathlib import Path

from sslkit.errors import failure_of

_MAX_LENGTH = 300


def describe_failure(error: BaseException, module: str | None = None) -> str:
    """Exception type and message, and the innermost line of the plugin that it passed through.

    module: the module that was imported; every module of its top-level package is the plugin's
    (for the built-ins, every module below `sslkit.builtin`). None: of any installed plugin; where
    none of them ran, the innermost line that is neither Python's own nor torch's.
    """
    summary = failure_of(error, _MAX_LENGTH)
    place = _place(error, module)
    return f"{summary} ({place})" if place else summary


def file_in_hand(error: BaseException) -> str | None:
    """The file that was being read as an exception came up, where its message does not name it: an
    open one, or a path of one, that the innermost lines held."""
    said = str(error)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            path = value.name if isinstance(value, io.IOBase) and hasattr(value, "name") else value
            if isinstance(path, (str, Path)) and (path is not value or isinstance(path, Path)):
                return str(path) if _is_file(Path(path)) and str(path) not in said else None
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _place(error: BaseException, module: str | None) -> str | None:
    """`file:line` of the innermost frame in the plugin; None where its code did not run."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    packages = _plugin_packages() if module is None else {module.partition(".")[0]}
    place = fallback = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        name, here = frame.f_globals.get("__name__", ""), f"{frame.f_code.co_filename}:{line}"
        top = name.partition(".")[0]
        if top in packages and (top != "sslkit" or f"{name}.".startswith("sslkit.builtin.")):
            place = here
        elif module is None and top != "torch" and not _is_pythons(frame.f_code.co_filename):
            fallback = here
    return place or fallback


def _plugin_packages() -> set[str]:
    """The top-level packages of installed plugins but the core's, which calls other libraries where
    something is wrong there."""
    try:
        found = {each.module.partition(".")[0] for each in entry_points(group="sslkit")}
        return found - {"sslkit"}
    except Exception:  # metadata that cannot be read, of any distribution
        return set()


def _is_pythons(file: str) -> bool:
    """Whether code is Python's own, such as `<frozen codecs>`."""
    return file.startswith(("<", f"{_PYTHON}{os.sep}")) and "site-packages" not in file


_PYTHON = sysconfig.get_path("stdlib")
