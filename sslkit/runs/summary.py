"""What a run folder says of itself at a glance, for tables of many: its state, how far it came, its
last numbers. No checkpoint is read and no torch imported; a folder may be a stranger's, or damaged.

A run writes its log every ten seconds, whatever it does; that is its heartbeat.
"""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os.path import lexists
from pathlib import Path
from typing import Any, Literal

from sslkit.errors import CheckpointError, RunFolderError
from sslkit.files import read_json, read_text, reason

from .endings import read_failure, read_results, why_stopped
from .folder import RunFolder, checkpoint_paths, is_held, read_owner
from .metrics_file import MAX_NUMBER, MetricLine, read_tail

State = Literal["running", "finished", "stopped", "failed", "stale", "damaged"]
STATES: tuple[State, ...] = ("running", "finished", "stopped", "failed", "stale", "damaged")

Value = str | int | float | bool | None

_MOST_BYTES = 2 << 20
"""Bytes of a JSON file that is read at a glance: a hundred times as many as those of our runs."""
_TAIL_BYTES, _LONG_TAIL_BYTES = 1 << 15, 1 << 20
_LONGEST_REASON = 300
_BEATS_S = 60.0
"""Within how long a log was written to by a run on another machine, whose lock cannot be seen."""


@dataclass(frozen=True)
class RunSummary:
    """One run folder at a glance."""

    path: Path
    state: State
    """running: a process has the folder. finished: it has results. stopped: by a signal, or an
    evaluator. failed: by an error. stale: it has no end, and nobody has it, as after `kill -9`.
    damaged: one of its files cannot be read."""
    why: str | None = None
    """What stopped, failed or damaged it, where that is known."""
    began: datetime | None = None
    changed: datetime | None = None
    """When its log was last written to."""
    step: int = 0
    total_steps: int | None = None
    recipe: Mapping[str, Value] = field(default_factory=dict)
    """Dotted field -> value of the resolved recipe."""
    recipe_hash: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric, as far as the end of the log has it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """environment.json."""
    owner: str | None = None
    """The process that has the folder."""

    @property
    def processes(self) -> int:
        """How many processes shared the work."""
        found = self.environment.get("processes")
        return found if type(found) is int and 0 < found < 1 << 20 else 1

    @property
    def checkpoints(self) -> list[Path]:
        """Its checkpoints by step, oldest first, by their names alone."""
        with suppress(OSError):
            if not (folder := RunFolder(self.path).checkpoints).is_symlink():
                return checkpoint_paths(folder)
        return []


def summarise(path: Path) -> RunSummary:
    """A run folder at a glance. Raises nothing for what stands in it: that is its state."""
    if path.is_symlink():
        return RunSummary(path.absolute(), "damaged", "is a link, which is not followed")
    return _Reader(RunFolder(path.absolute())).summary()


class _Reader:
    """Reads one folder, file by file, and keeps the first reason why one cannot be read."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.damage: str | None = None

    def summary(self) -> RunSummary:
        folder = self.folder
        has_owner = is_held(folder.path) or self._beats_elsewhere()
        environment, tracked = self._environment(), self._block(folder.tracker)
        state, why = self._state(has_owner, tracked.get("status"))
        lines = self._log()
        return RunSummary(
            path=folder.path,
            state="damaged" if self.damage else state,
            why=self.damage or why,
            began=self._began(),
            changed=_modified(folder.metrics),
            step=max((line.step for line in lines), default=0),
            total_steps=_total_steps(environment),
            recipe=_values(_inside(tracked, "params")),
            recipe_hash=_text(_inside(tracked, "tags").get("sslkit.recipe_hash")),
            metrics={key: value for line in lines for key, value in line.metrics.items()},
            environment=environment,
            owner=str(read_owner(folder.path) or "another process") if has_owner else None,
        )

    def _state(self, has_owner: bool, status: Any) -> tuple[State, str | None]:
        folder = self.folder
        if self._can_read(folder.results):
            with self._noting():
                read_results(folder, _MOST_BYTES)
            return "finished", None
        if has_owner:
            return "running", None
        with self._noting():
            if self._can_read(folder.stopped):
                return "stopped", why_stopped(folder.path)
            if self._can_read(folder.not_finite) and (failure := read_failure(folder)):
                return "failed", f"step {failure.step}: {failure.first}"
        if status == "killed":
            return "stopped", "by a signal"
        if status == "failed":
            return "failed", self._last_words()
        return "stale", None if folder.recipe.is_file() else "ended before its first step"

    def _environment(self) -> dict[str, Any]:
        """Written before the recipe, so that a folder with a recipe has it."""
        folder = self.folder
        recipe = next((each for each in (folder.recipe, folder.evaluation) if lexists(each)), None)
        if recipe is not None and self._can_read(recipe) and not lexists(folder.environment):
            self._note(f"{folder.environment.name}: is missing")
        return self._block(folder.environment)

    def _block(self, path: Path) -> dict[str, Any]:
        """A block of fields; none where there is no such file."""
        if not self._can_read(path):
            return {}
        try:
            found = read_json(path, _MOST_BYTES, inside=self.folder.path)
        except (OSError, ValueError) as error:
            self._note(f"{path.name}: {reason(error)}")
            return {}
        if not isinstance(found, dict):
            self._note(f"{path.name}: holds no block of fields")
            return {}
        return found

    def _log(self) -> list[MetricLine]:
        if not lexists(self.folder.metrics):
            return []
        lines: list[MetricLine] = []
        with self._noting():
            lines = read_tail(self.folder.metrics, _TAIL_BYTES)
            if not any(key.startswith("eval/") for line in lines for key in line.metrics):
                lines = read_tail(self.folder.metrics, _LONG_TAIL_BYTES)  # it is further back
        return lines

    def _began(self) -> datetime | None:
        """As the folder's name says; else when its recipe was written."""
        with suppress(ValueError):
            return datetime.strptime(self.folder.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        return _modified(self.folder.recipe)

    def _last_words(self) -> str | None:
        """The last line of the traceback, where it is of the last start."""
        path = self.folder.traceback
        written, started = _modified(path), _modified(self.folder.environment)
        if not self._can_read(path) or written is None or (started and written < started):
            return None
        with suppress(OSError, ValueError):
            lines = read_text(path, _MOST_BYTES, inside=self.folder.path).strip().splitlines()
            return lines[-1][:_LONGEST_REASON] if lines else None
        return None

    def _beats_elsewhere(self) -> bool:
        """Whether a process of another machine has the folder, whose lock may not be seen here."""
        owner = read_owner(self.folder.path)
        if owner is None or owner.host == socket.gethostname():
            return False
        changed = _modified(self.folder.metrics)
        return changed is not None and time.time() - changed.timestamp() < _BEATS_S

    def _can_read(self, path: Path) -> bool:
        """Whether there is such a file. Notes what is none, or is too large for a glance."""
        try:
            status = path.lstat()
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode):
            what = "a link" if stat.S_ISLNK(status.st_mode) else "no regular file"
            self._note(f"{path.name}: is {what}, which a run folder may not hold")
        elif status.st_size > _MOST_BYTES:
            self._note(f"{path.name}: is larger than {_MOST_BYTES >> 20} MiB")
        else:
            return True
        return False

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (CheckpointError, RunFolderError) as error:
            self._note(str(error).removeprefix(f"{self.folder.path}/"))
        except FileNotFoundError:  # removed meanwhile
            pass

    def _note(self, problem: str) -> None:
        self.damage = self.damage or problem


def _modified(path: Path) -> datetime | None:
    with suppress(OSError, OverflowError, ValueError):
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    return None


def _inside(block: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = block.get(key)
    return found if isinstance(found, dict) else {}


def _values(block: Mapping[str, Any]) -> dict[str, Value]:
    return {
        key: value
        for key, value in block.items()
        if value is None or isinstance(value, str | int | float)
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _total_steps(environment: Mapping[str, Any]) -> int | None:
    found = _inside(environment, "facts").get("total_steps")
    return found if type(found) is int and 0 < found <= MAX_NUMBER else None
