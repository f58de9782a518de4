"""Looking for run folders, in whatever else lies there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sslkit.errors import RunFolderError
from sslkit.files import leftovers

from .folder import RunFolder, checkpoint_paths

_ID = r"-\d{8}-\d{6}-[0-9a-f]{4}"
_NAME = re.compile(rf".+{_ID}")
_REMOVED = re.compile(rf"\..+{_ID}\.[a-z0-9_]{{8}}\.tmp")
"""What a run folder is called while it is being removed."""
_DEEPEST = 5
"""Folders inside folders: `comparisons/<name>/runs/<run>` has two more than `runs/<run>`."""
_MOST_ENTRIES = 200_000
_ANY = RunFolder(Path())
_MARKS = {_ANY.recipe.name, _ANY.evaluation.name}
_OUR_NAMES = {
    *_MARKS, ".lock", ".owner",
    *(path.name for path in (
        _ANY.environment, _ANY.metrics, _ANY.tracker, _ANY.encoder, _ANY.report, _ANY.results,
        _ANY.stopped, _ANY.not_finite, _ANY.traceback, _ANY.corrupt_images("train"),
        _ANY.corrupt_images("test"), _ANY.checkpoints, _ANY.figures, _ANY.evaluations,
    )),
}  # fmt: skip


def search_runs(place: Path) -> list[Path]:
    """The run folders in a folder and in those inside it, by path; the folder itself, where it is
    one. Links are not followed: a link that is called like a run is given as it is.

    A run folder has a recipe, or the name of one: it is then one whose run never began. Raises
    RunFolderError where the folder cannot be read, or holds too much to be one of runs."""
    return sorted(_Search(place).look(place, 0))


def search_removed(place: Path) -> list[Path]:
    """What was left of run folders whose removal was cut off."""
    search = _Search(place)
    list(search.look(place, 0))
    return sorted(search.removed)


def foreign_entries(path: Path) -> list[str]:
    """What lies in a run folder, or beside its checkpoints, that no run has written there: a person
    has, who would miss it."""
    folder = RunFolder(path)
    saved = {each.name for each in checkpoint_paths(folder.checkpoints)}
    found = [each.name for each in path.iterdir() if each.name not in _OUR_NAMES]
    if folder.checkpoints.is_dir():
        found += [each.name for each in folder.checkpoints.iterdir() if each.name not in saved]
    parts = {each.name for each in leftovers(path)}
    return sorted(name for name in found if name not in parts)


class _Search:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.removed: list[Path] = []
        self._seen = 0

    def look(self, folder: Path, depth: int) -> Iterator[Path]:
        try:
            with os.scandir(folder) as found:
                entries = list(self._counted(found))
        except OSError as error:
            if depth == 0:
                raise RunFolderError(f"{folder}: {error.strerror}; name a folder of runs") from None
            return  # not ours to read
        if {entry.name for entry in entries} & _MARKS or (depth == 0 and _is_bare(folder)):
            yield folder
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                yield from [path] if _NAME.fullmatch(entry.name) and path.is_dir() else []
            elif entry.is_dir(follow_symlinks=False):
                yield from self._inside(path, depth + 1)

    def _inside(self, path: Path, depth: int) -> Iterator[Path]:
        if _REMOVED.fullmatch(path.name):
            self.removed.append(path)
        elif _is_bare(path):
            yield path
        elif not path.name.startswith(".") and depth <= _DEEPEST:
            yield from self.look(path, depth)

    def _counted(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            self._seen += 1
            if self._seen > _MOST_ENTRIES:
                raise RunFolderError(
                    f"{self.place}: holds more than {_MOST_ENTRIES:,} files outside of runs; name "
                    "the folder that the runs are in"
                )
            yield entry


def _is_bare(path: Path) -> bool:
    """Whether this is what is left of a run that was killed before its recipe was written: named
    like a run, with its folders."""
    return _NAME.fullmatch(path.name) is not None and RunFolder(path).checkpoints.is_dir()
