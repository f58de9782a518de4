"""Paths of many files in few bytes each."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload


class FolderRun(NamedTuple):
    """Files that follow one another in one folder."""

    folder: str
    """Relative, with `/`; empty for the folder above all."""
    start: int
    stop: int


class PathTable(Sequence[str]):
    """Relative paths, with `/`, in the order in which they are added: folders once for each run of
    their files, names in one buffer. A file costs the bytes of its name and eight more."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._folders: list[str] = []
        self._starts = array("q")
        """First file of each run."""
        self._names = bytearray()
        self._ends = array("q", [0])
        """Where each name ends, after the place where the first begins."""
        for path in paths:
            folder, _, name = path.rpartition("/")
            self.add(folder, name)

    def add(self, folder: str, name: str) -> None:
        """One more file."""
        if not self._folders or self._folders[-1] != folder:
            self._folders.append(folder)
            self._starts.append(len(self))
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))

    def runs(self) -> Iterator[FolderRun]:
        """The files by folder, in order; a folder whose files are apart comes more than once."""
        stops = [*self._starts[1:], len(self)][: len(self._starts)]
        for folder, start, stop in zip(self._folders, self._starts, stops, strict=True):
            yield FolderRun(folder, start, stop)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # raises IndexError
        return self._path(self._folders[bisect_right(self._starts, index) - 1], index)

    def __iter__(self) -> Iterator[str]:
        for folder, start, stop in self.runs():
            for index in range(start, stop):
                yield self._path(folder, index)

    def _path(self, folder: str, index: int) -> str:
        name = os.fsdecode(bytes(self._names[self._ends[index] : self._ends[index + 1]]))
        return f"{folder}/{name}" if folder else name
