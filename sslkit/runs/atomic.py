"""Writing a file so that a reader, or a crash, sees the old content or the new, never a part."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|(saving|encoder)\.tmp")
"""The names that files have until they are whole, and those that older versions gave them."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to be written by its name: it becomes `path` at the end of the
    block, flushed to the disk, and is removed where the block raises.

    Raises OSError; the old file is then as it was."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o666 & ~UMASK)  # mkstemp and safetensors let only the owner read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)  # the rename survives a power cut, too


def write_atomic(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8). Raises OSError; the old file is then as it was."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Makes a file, or what a folder lists, survive a power cut, where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
