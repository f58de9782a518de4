"""What went wrong inside a plugin, in one line."""

from __future__ import annotations

import traceback

from sslkit.errors import failure_of

_MAX_LENGTH = 300


def describe_failure(error: BaseException, module: str | None = None) -> str:
    """Exception type and message, and the innermost line of the plugin that it passed through.

    module: the module that was imported; every module of its top-level package is the plugin's
    (for the built-ins, every module below `sslkit.builtin`). None: whatever is not torch.
    """
    summary = failure_of(error, _MAX_LENGTH)
    place = _place(error, module)
    return f"{summary} ({place})" if place else summary


def _place(error: BaseException, module: str | None) -> str | None:
    """`file:line` of the innermost frame in the plugin; None where its code did not run."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    package = None if module is None else module.partition(".")[0]
    if package == "sslkit":
        package = "sslkit.builtin"
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        ours = (
            name.partition(".")[0] != "torch"
            if package is None
            else (name == package or name.startswith(f"{package}."))
        )
        if ours:
            place = f"{frame.f_code.co_filename}:{line}"
    return place
