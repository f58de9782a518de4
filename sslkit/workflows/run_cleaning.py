"""`sslkit runs clean`: removes run folders that nobody can go on from, and what kills left.

A run folder is removed whole, by its one writer: it is locked, looked at again, and renamed before
anything in it goes, so that a run that starts meanwhile finds it in use or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sslkit.errors import RunFolderError
from sslkit.files import leftovers
from sslkit.runs.folder import (
    RunFolder,
    checkpoint_paths,
    lock_folder,
    refuse_links,
    unlock_folder,
)
from sslkit.runs.search import foreign_entries, search_removed
from sslkit.runs.summary import RunSummary, summarise

from .run_list import RunQuery

_STARTING_S = 600.0
"""How long a folder without a recipe may be that of a run which is just starting."""


@dataclass(frozen=True)
class Removal:
    """Something that can go."""

    path: Path
    """The run folder; all that goes lies in it."""
    why: str
    bytes: int
    seen: tuple[Any, ...] = ()
    """What the folder was like when it was judged: see `_marks`."""
    files: tuple[Path, ...] | None = None
    """The files that go; None: the whole folder."""


@dataclass(frozen=True)
class Kept:
    """Something that one might have expected to go, and that stays."""

    path: Path
    why: str


@dataclass(frozen=True)
class Cleaning:
    """What was removed, or would be."""

    removals: tuple[Removal, ...]
    kept: tuple[Kept, ...]
    done: bool
    """Whether it was removed; False: only looked for."""
    failed: int = 0
    """How many were to be removed and could not be; they are among `kept`."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "done": self.done,
            "failed": self.failed,
            "removals": [
                {"path": str(each.path), "why": each.why, "bytes": each.bytes,
                 "files": None if each.files is None else [path.name for path in each.files]}
                for each in self.removals
            ],
            "kept": [{**asdict(each), "path": str(each.path)} for each in self.kept],
        }  # fmt: skip


def clean(
    query: RunQuery, *, unfinished: bool = False, checkpoints: bool = False, remove: bool = False
) -> Cleaning:
    """Looks for what can go, and removes it where `remove` says so.

    unfinished: runs that could still go on, too. checkpoints: those of finished runs, but the last.
    A run that a process has is never touched, nor is one with a link in it, or with files that no
    run writes. Raises what `RunQuery.find` raises."""
    found: list[Removal | Kept] = []
    for run in query.find():
        found += _judge(run.path, unfinished, checkpoints)
    if not (query.states or query.where or query.name):
        found += _half_removed(query)
    removals = [each for each in found if isinstance(each, Removal)]
    kept = [each for each in found if isinstance(each, Kept)]
    if not remove:
        return Cleaning(tuple(removals), tuple(kept), done=False)
    removed = []
    for removal in removals:
        try:
            removed.append(_remove(removal))
        except (OSError, RunFolderError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            kept.append(Kept(removal.path, f"could not be removed: {why}"))
    failed = len(removals) - len(removed)
    return Cleaning(tuple(removed), tuple(kept), done=True, failed=failed)


# --- What can go ----------------------------------------------------------------------------------


def _judge(path: Path, unfinished: bool, checkpoints: bool) -> Iterator[Removal | Kept]:
    """What of one run can go. Changes nothing."""
    seen = _marks(path)
    run = summarise(path)
    if run.state == "running":
        return
    if run.state == "damaged":
        yield Kept(run.path, f"damaged ({run.why}); look at it, and remove it by hand")
        return
    try:
        refuse_links(run.path)
        foreign = foreign_entries(run.path)
    except (OSError, RunFolderError) as error:
        yield Kept(run.path, str(error))
        return
    if run.state != "finished":
        yield from _judge_unfinished(run, unfinished, foreign, seen)
        return
    if parts := tuple(leftovers(run.path)):
        yield Removal(path, "parts of files that a kill left", _size_of(parts), seen, parts)
    if checkpoints and (old := tuple(run.checkpoints[:-1])):
        why = f"finished; keeps {run.checkpoints[-1].name}"
        yield Removal(path, why, _size_of(old), seen, old)


def _judge_unfinished(
    run: RunSummary, unfinished: bool, foreign: list[str], seen: tuple[Any, ...]
) -> Iterator[Removal | Kept]:
    folder, where = RunFolder(run.path), f"{run.state} at step {run.step}"
    if not folder.recipe.is_file() and _is_young(run.path):
        return
    if foreign:
        names = ", ".join(foreign[:3])
        yield Kept(run.path, f"{where}; holds {names}, which no run writes: remove it by hand")
        return
    saved = run.checkpoints
    if saved and not unfinished:
        yield Kept(run.path, f"{where}, can go on from {saved[-1].name}; --unfinished removes it")
    elif folder.evaluations.is_dir() and not unfinished:
        yield Kept(run.path, f"{where}, was measured; --unfinished removes it")
    else:
        nothing = "" if saved else ", saved nothing"
        yield Removal(run.path, f"{where}{nothing}", _size_of(_files(run.path)), seen)


def _half_removed(query: RunQuery) -> Iterator[Removal | Kept]:
    places = query.existing_places()
    for path in dict.fromkeys(path for place in places for path in search_removed(place)):
        try:
            refuse_links(path)
        except RunFolderError as error:
            yield Kept(path, str(error))
        else:
            yield Removal(path, "its removal was cut off", _size_of(_files(path)))


def _is_young(path: Path) -> bool:
    newest = max((each.lstat().st_mtime for each in (path, *path.iterdir())), default=0.0)
    return time.time() - newest < _STARTING_S


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(Path(at) / name for at, _, names in os.walk(folder) for name in names)


def _size_of(files: tuple[Path, ...]) -> int:
    return sum(path.lstat().st_size for path in files)


# --- Removing -------------------------------------------------------------------------------------


def _remove(removal: Removal) -> Removal:
    """What was removed in the end. Raises OSError, and RunFolderError where it may no longer go."""
    if removal.files is None and removal.path.name.startswith("."):
        shutil.rmtree(removal.path)  # nobody can find it to lock it
        return removal
    with _locked_as_it_was(removal.path, removal.seen):
        if removal.files is None:
            _remove_folder(removal.path)
            return removal
        files = tuple(path for path in removal.files if path.is_file())
        _refuse_to_lose_the_last(removal.path, files)
        for path in files:
            path.unlink()
        return replace(removal, files=files)


@contextmanager
def _locked_as_it_was(path: Path, seen: tuple[Any, ...]) -> Iterator[None]:
    """Holds the folder. Raises RunFolderError where another process has it, or has gone on with it
    since it was judged."""
    _require_same(path, seen)  # a lock in a folder that is gone would make it anew
    lock = lock_folder(path)
    try:
        refuse_links(path)
        _require_same(path, seen)
        yield
    finally:
        unlock_folder(path, lock)


def _require_same(path: Path, seen: tuple[Any, ...]) -> None:
    if _marks(path) != seen:
        raise RunFolderError(f"{path}: has changed meanwhile; look again")


def _marks(path: Path) -> tuple[Any, ...]:
    """What changes where a run goes on."""
    folder = RunFolder(path)
    return tuple(
        each.lstat().st_mtime_ns if each.exists() else None
        for each in (folder.recipe, folder.environment, folder.metrics, folder.checkpoints,
                     folder.results)
    )  # fmt: skip


def _remove_folder(path: Path) -> None:
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _refuse_to_lose_the_last(path: Path, files: tuple[Path, ...]) -> None:
    """Raises RunFolderError where the checkpoint that stays is damaged: one that goes may be the
    last that is good."""
    from sslkit.runs.checkpoint import is_whole

    saved = checkpoint_paths(RunFolder(path).checkpoints)
    staying = [each for each in saved if each not in files]
    if len(staying) < len(saved) and not (staying and is_whole(staying[-1])):
        raise RunFolderError(f"{[path, *staying][-1]}: is damaged; the checkpoints before it stay")
