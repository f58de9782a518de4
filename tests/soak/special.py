"""Files that are no files: devices, pipes, links, folders, and files with holes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from .stock import pick

_HOLE_BYTES = 3 * 2**30


def make_special(generator: random.Random, path: Path) -> str:
    """Puts one of them where `path` is. Returns what it is."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        path.rename(path.with_name(path.name + ".aside"))
    what = pick(generator, dict.fromkeys(_SPECIAL, 1.0))
    _SPECIAL[what](path)
    return f"{path.name}: {what}"


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_HOLE_BYTES)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


_SPECIAL: dict[str, Callable[[Path], None]] = {
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/random": lambda path: path.symlink_to("/dev/urandom"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": _dangling,
    "a link to the folder above": lambda path: path.symlink_to(".."),
    "a file with a hole of 3 GB": _sparse,
    "an empty file": lambda path: path.write_bytes(b"") and None,
    "gone": lambda path: None,
    "a link to a file of the system": lambda path: path.symlink_to("/proc/self/environ"),
}
