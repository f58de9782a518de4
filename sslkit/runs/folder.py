"""The run folder: the truth about a run. Trackers mirror it.

The files, and what writes and reads each:
  recipe.resolved.yaml   sslkit.recipe            checkpoints/          checkpoint
  environment.json       environment_file         encoder.safetensors   encoder_file
  metrics.jsonl          metrics_file             results.json, stopped.json, not_finite.json,
  tracker.json           upload_state               traceback.txt, corrupt_*.json    endings
  evaluations/, and the folder of an evaluation of weights: evaluations
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from sslkit.errors import RunFolderError, TrainingError
from sslkit.files import open_file, read_json, remove_leftovers, write_atomic
from sslkit.parallel.world import World
from sslkit.run_files import RunFiles

from .metrics_file import truncate_after

_MAX_NAME = 80
_MAX_ENTRIES = 100_000
_MAX_OWNER_BYTES = 1 << 12
_LOOK_S = 0.2
"""How long a writer waits for those who only look whether a folder is held."""
_CHECKPOINT = re.compile(r"step-(\d+)\.pt")


class RunFolder(RunFiles):
    """Paths inside a run folder and, for its one writer, the right to write.

    `RunFolder.create` and `RunFolder.open(path, write=True)` lock the folder until `close`, the end
    of a `with` block, or the end of the process, however it ends. Reading needs no lock."""

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        super().__init__(path)
        self._lock = lock

    @classmethod
    def create(cls, runs_dir: Path | str, name: str) -> RunFolder:
        """Makes `runs_dir/<name>-<id>` and locks it. Raises RunFolderError."""
        parent = Path(runs_dir).absolute()
        while True:
            path = parent / f"{sanitise_name(name)}-{new_run_id()}"
            try:
                path.mkdir(parents=True)
                folder = cls(path)
                folder.checkpoints.mkdir()
                folder.figures.mkdir()
            except FileExistsError as error:
                if path.is_dir():
                    continue  # the same second and the same four digits
                raise _cannot_create(parent, error) from error
            except OSError as error:
                raise _cannot_create(parent, error) from error
            folder._lock = lock_folder(path)
            return folder

    @classmethod
    def open(cls, path: Path | str, *, write: bool = False, patience_s: float = 0.0) -> RunFolder:
        """An existing run folder. Raises RunFolderError where there is none, where it holds links,
        devices or pipes, and, with `write`, where another process writes it: if it still does after
        `patience_s` seconds."""
        path = Path(path).absolute()
        if not path.is_dir():
            raise RunFolderError(f"{path}: no such run folder")
        folder = cls(path)
        marks = (folder.recipe, folder.evaluation, _lock_file(path))
        if not any(mark.exists() for mark in marks):
            raise RunFolderError(f"{path}: not a run folder (it has no {folder.recipe.name})")
        refuse_links(path)
        if write:
            folder._lock = lock_folder(path, patience_s)
            remove_leftovers(path)
        return folder

    @property
    def id(self) -> str:
        """The last part of the folder's name: `<UTC date>-<time>-<4 hex digits>`."""
        return "-".join(self.path.name.split("-")[-3:])

    @property
    def evaluation(self) -> Path:
        """In place of `recipe`, where weights were measured and nothing was trained."""
        return self.path / "evaluation.yaml"

    @property
    def tracker(self) -> Path:
        """What the tracker has received."""
        return self.path / "tracker.json"

    @property
    def stopped(self) -> Path:
        """Why an evaluator ended the run before its time; missing where none did."""
        return self.path / "stopped.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """What the run came to. Written last: a run folder that has it is finished."""
        return self.path / "results.json"

    @property
    def not_finite(self) -> Path:
        """The step that was not finite; missing where none was."""
        return self.path / "not_finite.json"

    @property
    def traceback(self) -> Path:
        """The traceback of an unexpected failure."""
        return self.path / "traceback.txt"

    @property
    def evaluations(self) -> Path:
        """The folder of what `sslkit eval` measured of this run."""
        return self.path / "evaluations"

    def corrupt_images(self, split: str) -> Path:
        """The unreadable images of a split, `train` or `test`."""
        name = "corrupt_images.json" if split == "train" else f"corrupt_{split}_images.json"
        return self.path / name

    @property
    def writable(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def require_writable(self) -> None:
        """Raises RuntimeError where the folder was opened for reading."""
        if self._lock is None:
            raise RuntimeError(f"{self.path} was opened for reading, or is closed")

    def write_text(self, path: Path | str, text: str) -> Path:
        """Replaces a file of the folder atomically; a relative path counts from the folder."""
        self.require_writable()
        target = self.path / path
        if not self.path.is_dir():  # it must not come into being again, with this file alone
            raise TrainingError(f"{self.path}: is gone (moved or removed while it was in use)")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text)
        return target

    def write_json(self, path: Path | str, value: Any) -> Path:
        """Replaces a file of the folder by `value` as JSON, atomically."""
        return self.write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_recipe(self, text: str) -> Path:
        """Writes the resolved recipe: from then on the folder is that of a run to go on with."""
        return self.write_text(self.recipe, text)

    def truncate_metrics(self, step: int) -> None:
        """Drops what `metrics.jsonl` holds beyond `step`, before a run resumes there. A torn last
        line, as `kill -9` leaves it, goes too."""
        self.require_writable()
        truncate_after(self.metrics, step)

    def close(self) -> None:
        """Releases the lock. A second call does nothing."""
        if self._lock is not None:
            unlock_folder(self.path, self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


def held_by_first(world: World, hold: Callable[[], RunFolder]) -> RunFolder:
    """The folder that rank 0 makes or opens for writing, on every rank: the others may read it.
    What `hold` raises there is raised on every rank."""
    held: list[RunFolder] = []

    def hold_and_tell() -> Path:
        held.append(hold())
        return held[0].path

    path = world.once(hold_and_tell)
    return held[0] if held else RunFolder(path)


def sanitise_name(name: str) -> str:
    """A recipe's name as a part of a path: letters, digits, `.`, `_` and `-`."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:_MAX_NAME].rstrip("-.")
    return cleaned or "run"


def new_run_id() -> str:
    """Sorts by time (UTC, one second); four random hex digits tell runs of one second apart."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def find_runs(parent: Path, name: str = "*") -> list[RunFolder]:
    """The folders in `parent` whose run has begun, by name. name: of their recipe; links in them
    are not looked for."""
    beginning = name if name == "*" else f"{sanitise_name(name)}-*"
    folders = (RunFolder(path.absolute()) for path in sorted(parent.glob(beginning)))
    return [folder for folder in folders if folder.recipe.exists()]


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in a folder by step, oldest first."""
    if not folder.is_dir():
        return []
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]


def run_folder_of(run_or_checkpoint: Path) -> RunFolder:
    """The run folder that a path is, or that a checkpoint lies in. Raises RunFolderError."""
    path = run_or_checkpoint
    if not path.exists():
        raise RunFolderError(f"{path}: no such run folder or checkpoint")
    return RunFolder.open(path if path.is_dir() else path.parent.parent)


def lies_in_a_run(checkpoint: Path) -> bool:
    """Whether a file lies where a run has its checkpoints."""
    return RunFolder(checkpoint.absolute().parent.parent).recipe.exists()


def refuse_links(path: Path) -> None:
    """Raises RunFolderError where a folder, which may come from a stranger, holds something else
    than files and folders: what is read or written through a link would lie elsewhere."""
    waiting, seen = [path], 0
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif not entry.is_file(follow_symlinks=False):
                        what = "a link" if entry.is_symlink() else "no regular file"
                        raise RunFolderError(
                            f"{entry.path}: is {what}; a run folder holds its files itself, put "
                            "the file in its place or remove it"
                        )
            if seen > _MAX_ENTRIES:
                raise RunFolderError(f"{path}: holds more than {_MAX_ENTRIES:,} files; is no run")
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror})") from error


def lock_folder(path: Path, patience_s: float = 0.0) -> FileLock:
    """Takes the operating system's lock on a folder, which ends with the process that holds it.

    Raises RunFolderError where another process, which it names, has it for longer than `patience_s`
    seconds (and a look), or where it cannot be written. Give it back with `unlock_folder`."""
    for name in (_lock_file(path), _owner_file(path)):
        if name.is_symlink():
            raise RunFolderError(f"{name}: is a link; remove it")
    lock = FileLock(_lock_file(path), thread_local=False)
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        lock.acquire(timeout=max(patience_s, _LOOK_S))
        write_atomic(_owner_file(path), json.dumps(owner))
    except Timeout:
        raise RunFolderError(f"{path}: in use by {_owner(path)}; wait or stop it first") from None
    except OSError as error:
        lock.release()
        raise RunFolderError(f"{path}: cannot be written ({error.strerror})") from error
    return lock


@dataclass(frozen=True)
class Owner:
    """The process that has a folder, or had it when it was killed."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def read_owner(path: Path) -> Owner | None:
    """Who says to have a folder; None where nobody does."""
    try:
        owner = read_json(_owner_file(path), _MAX_OWNER_BYTES, inside=path)
        return Owner(int(owner["pid"]), str(owner["host"])[:80])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def is_held(path: Path) -> bool:
    """Whether a process has a folder. Changes nothing: a writer that comes meanwhile waits for the
    moment that this takes."""
    if not _owner_file(path).is_file():
        return False
    try:
        import fcntl
    except ImportError:  # Windows: the owner's word is all that there is
        return True
    try:
        with open_file(_lock_file(path), inside=path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # ends as the file is closed
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    return False


def unlock_folder(path: Path, lock: FileLock) -> None:
    """Gives back what `lock_folder` took."""
    _owner_file(path).unlink(missing_ok=True)
    lock.release()


def _lock_file(path: Path) -> Path:
    return path / ".lock"


def _owner_file(path: Path) -> Path:
    return path / ".owner"


def _owner(path: Path) -> str:
    owner = read_owner(path)
    return "another process" if owner is None else str(owner)  # it is just starting or stopping


def _cannot_create(parent: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"runs_dir: cannot make a run folder in {parent} ({error.strerror})")
