"""Standard output and standard error that no terminal, pipe or name of a file can break."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO


def show_warnings_in_one_line() -> None:
    """Shows Python's warnings, also those of libraries, as one line without the place in a source
    file."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        # In one piece: another thread may have a warning at the same moment.
        sys.stderr.write(f"warning: {' '.join(str(message).split())[:500]}\n")
        sys.stderr.flush()

    warnings.showwarning = show


class _UntilClosed(io.FileIO):
    """A stream whose reader may leave, as `| head` does: the rest is dropped, and the command does
    its work to the end. A full disk is said once."""

    _failed = False

    def write(self, data: object) -> int:
        whole = memoryview(data).nbytes  # type: ignore[arg-type]
        if self._failed:
            return whole
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except BrokenPipeError:
            self._failed = True
            return whole
        except OSError:
            self._failed = True  # or the interpreter fails again as it writes what is left
            raise


def make_streams_robust() -> None:
    """Replaces both streams of this process by such that write `?` for what their encoding lacks
    (not every terminal is UTF-8, and names of files need not be) and that outlive their reader."""
    sys.stdout = _robust(sys.stdout, "replace")
    sys.stderr = _robust(sys.stderr, "backslashreplace")


def _robust(stream: TextIO | None, errors: str) -> TextIO:
    """The stream again; nowhere for one that the process was started without."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    raw = _UntilClosed(stream.fileno(), "w", closefd=False)
    stream.flush()
    # Unbuffered streams and terminals show each line at once.
    at_once = raw.isatty() or bool(getattr(stream, "line_buffering", False))
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, errors, line_buffering=at_once,
        write_through=bool(getattr(stream, "write_through", False)),
    )  # fmt: skip
