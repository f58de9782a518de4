"""Writing a file so that a reader, or a crash, sees the old content or the new, never a part."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|(saving|encoder)\.tmp")
"""The names that `write_atomic`, checkpoints and the encoder's file have until they are whole."""


def write_atomic(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8): temporary file beside it, fsync, rename.

    Raises OSError; the old file is then as it was."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)  # mkstemp makes files that only the owner can read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes the parts of files that were being written in a folder, or in those in it, as their
    process was killed. Only for whoever holds the lock of the folder: nobody else writes there."""
    for place in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        for path in place.iterdir():
            if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
                with suppress(OSError):
                    path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # once: reading it sets it for a moment, for all threads
