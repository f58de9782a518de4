"""The files that the fields of a data source name: found, copied, and named in another place."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .laws import UntriedError

_MOST_BYTES = 64 << 20
_MOST_FILES = 5000
_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class NamedFiles:
    """Files, folders and patterns that fields name."""

    fields: Mapping[str, Any]
    """Field -> value, of those that name something which is there."""
    paths: tuple[Path, ...]
    """What is there: files and folders, by their whole paths."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> NamedFiles:
        """What is there of what these fields name: as a path, a pattern, or several of these."""
        found = {name: list(_existing(value)) for name, value in fields.items()}
        paths = dict.fromkeys(path for each in found.values() for path in each)
        return cls({n: fields[n] for n, each in found.items() if each}, tuple(paths))

    @property
    def root(self) -> Path:
        """The folder that all of them lie in."""
        starts = [_start_of(path).parent for path in _named(list(self.fields.values()))]
        return Path(os.path.commonpath([*starts, *(path.parent for path in self.paths)]))

    def moved(self, move: Callable[[Path], Path]) -> dict[str, Any]:
        """The fields with each path in another place."""
        return {name: _moved(value, move) for name, value in self.fields.items()}


def _named(value: Any) -> Iterator[Path]:
    """Paths and patterns in the value of a field, by their whole paths."""
    if isinstance(value, Path) or _may_be_path(value):
        yield _whole(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _named(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _named(each)


def _whole(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (keeps links)


def _may_be_path(value: Any) -> bool:
    """Whether a text names files: one with a separator, or the name of a file with an ending. Any
    other word may be the name of a column."""
    if not isinstance(value, str):
        return False
    return os.sep in value or (bool(Path(value).suffix) and Path(value).is_file())


def _existing(value: Any) -> Iterator[Path]:
    for path in _named(value):
        if path.exists():
            yield path
        elif _MAGIC.intersection(str(path)):
            found = glob.glob(str(path), recursive=True)  # noqa: PTH207  (of any folder)
            yield from map(Path, sorted(found))


def _start_of(path: Path) -> Path:
    """The part of a pattern before its first sign, and one beyond: of `a/*/c`, `a/*`."""
    for count, part in enumerate(path.parts, 1):
        if _MAGIC.intersection(part) and not path.exists():
            return Path(*path.parts[:count])
    return path


def _moved(value: Any, move: Callable[[Path], Path]) -> Any:
    if isinstance(value, Path):
        return move(_whole(value))
    if _may_be_path(value):
        return str(move(_whole(value))) if any(_existing(value)) else value
    if isinstance(value, Mapping):
        return {name: _moved(each, move) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(each, move) for each in value)
    if isinstance(value, list):
        return [_moved(each, move) for each in value]
    return value


def copy_files(paths: Sequence[Path], root: Path, target: Path) -> list[Path]:
    """Copies files and folders, without times, to where they lie below `target` as they lie below
    `root`; gives the copies of files. Raises UntriedError where that is too much."""
    files = _files_of(paths)
    size = sum(file.stat().st_size for file in files)
    if size > _MOST_BYTES:
        raise UntriedError(f"{size / 1e6:,.0f} MB are too much to copy; try it on less")
    shutil.rmtree(target, ignore_errors=True)
    for path in paths:
        if path.is_dir():
            (target / path.relative_to(root)).mkdir(parents=True, exist_ok=True)
    copies = []
    for file in files:
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        copies.append(copy)
    return copies


def _files_of(paths: Sequence[Path]) -> list[Path]:
    """The files in files and folders, each once. Raises UntriedError where there are too many."""
    found: dict[Path, None] = {}
    for path in paths:
        for file in [path] if path.is_file() else _walk(path):
            found[file] = None
            if len(found) > _MOST_FILES:
                raise UntriedError(
                    f"more than {_MOST_FILES:,} files are too many to copy; try it on less"
                )
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder, followlinks=True):
        yield from (path for name in names if (path := Path(at) / name).is_file())
