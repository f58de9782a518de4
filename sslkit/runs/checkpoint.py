"""Checkpoints: written atomically, with a digest, read without running code, any of them good to
resume from."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sslkit.errors import CheckpointError, TrainingError
from sslkit.files import chunks, open_file, reason, remove_leftovers, replacing
from sslkit.nn.torch_file import read_torch_file
from sslkit.parallel.sharding import mapped
from sslkit.parallel.world import OneProcess, World

from .folder import checkpoint_paths

ONE_PROCESS = OneProcess()
FORMAT = 2
FORMAT_WITHOUT_DIGEST = 1
_MARK = b"sslkit-sha256:"
_TRAILER_BYTES = len(_MARK) + 64 + 1


class Checkpoints:
    """The checkpoints of a run: `step-00001200.pt`, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a checkpoint and removes all but the newest `keep` up to this step; what lies
        beyond it was damaged, or training would have gone on from there. A kill at any moment
        leaves either the whole new file or none of it.

        Raises TrainingError where the file cannot be written; the older ones are then untouched."""
        path = self._path(step)
        try:
            self.folder.mkdir(exist_ok=True)  # without parents: a run that was moved is elsewhere
            remove_leftovers(self.folder)  # so that kills do not fill the disk
            with replacing(path) as temporary, temporary.open("wb") as file:
                digesting = _DigestingFile(file)
                torch.save({"format": FORMAT, "step": step, **state}, digesting)  # type: ignore[arg-type]
                digesting.finish()
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):  # torch raises its own error over the system's
                raise
            if not self.folder.parent.is_dir():
                raise TrainingError(
                    f"{self.folder.parent}: is gone (moved or removed while the run went on); what "
                    "was saved before is where it went, and can be gone on with there: "
                    "sslkit run --resume FOLDER"
                ) from error
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({cause.strerror}); mend that, then "
                "resume the run"
            ) from error
        paths = self.paths()
        end = paths.index(path) + 1
        for old in paths[: max(end - self.keep, 0)] + paths[end:]:
            old.unlink(missing_ok=True)
        return path

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def wait(self) -> None:
        """Returns when what was saved is whole, and in its place."""

    def paths(self) -> list[Path]:
        """Checkpoints by step, oldest first."""
        return checkpoint_paths(self.folder)

    def load_newest(
        self, world: World = ONE_PROCESS
    ) -> tuple[dict[str, Any] | None, Sequence[str]]:
        """The newest checkpoint that can be read (None where there is none yet), and one message
        for each newer one that is damaged. Raises CheckpointError if all are damaged.

        world: the ranks that all read it. The first one chooses: another machine may still see the
        folder as it was some seconds ago."""
        chosen: list[dict[str, Any]] = []

        def choose() -> tuple[Path | None, list[str]]:
            damaged: list[str] = []
            for path in reversed(self.paths()):
                try:
                    chosen.append(load(path, inside=self.folder.parent))
                    return path, damaged
                except CheckpointError as error:
                    damaged.append(str(error))
            if damaged:
                raise CheckpointError("; ".join(damaged))
            return None, []

        path, damaged = world.once(choose)
        if path is None:
            return None, damaged
        return chosen[0] if chosen else load(path, inside=self.folder.parent), damaged


class BackgroundCheckpoints(Checkpoints):
    """Checkpoints that are written by a thread, from a copy of the state in the memory of the host,
    while training goes on. One at a time: the next one waits for the one before. Nothing is seen
    of a checkpoint before it is whole."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder, keep)
        self._writing: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Copies the state and begins to write it. Raises what the one before could not be written
        for."""
        self.wait()
        copied = copy_on_host(state)

        def write() -> None:
            try:
                Checkpoints.save(self, step, copied)
            except Exception as error:  # told to the thread that trains
                self._error = error

        # Not a daemon: a process that ends by an error leaves the checkpoint whole.
        self._writing = threading.Thread(target=write, name="checkpoint")
        self._writing.start()
        return self._path(step)

    def wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def copy_on_host(value: Any) -> Any:
    """A state (nested dicts, lists and tuples) whose tensors are copies on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return mapped(copy_on_host, value)


def load(path: Path, *, inside: Path | None = None) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; holds tensors and plain values only (`weights_only`).

    inside: see `sslkit.files.open_file`. Raises CheckpointError where a byte is not the one that
    was written, too. Checkpoints of the first release have no digest and are read without that."""
    if not path.exists() and not path.is_symlink():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with open_file(path, inside=inside) as file:
            digested = _check_digest(file)
            state = read_torch_file(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as a checkpoint: {reason(error)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: not a checkpoint of sslkit")
    if type(state["format"]) is not int or state["format"] not in (FORMAT, FORMAT_WITHOUT_DIGEST):
        raise CheckpointError(
            f"{path}: written in checkpoint format {state['format']!r:.40}, this version reads "
            f"{FORMAT}"
        )
    if state["format"] == FORMAT and not digested:
        raise CheckpointError(f"{path}: not readable as a checkpoint: its digest is damaged")
    return state


def is_whole(path: Path) -> bool:
    """Whether a checkpoint has the bytes that were written; its content is not looked at."""
    try:
        with open_file(path, inside=path.parent) as file:
            return _check_digest(file)
    except (OSError, ValueError):
        return False


class _DigestingFile:
    """What `torch.save` writes to; knows the digest of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        """Appends the digest, behind the end of the archive, where readers of archives pass it
        over."""
        self._file.write(_MARK + self._digest.hexdigest().encode() + b"\n")


def _check_digest(file: BinaryIO) -> bool:
    """Whether there is a digest. Raises ValueError where it is not that of the bytes before it."""
    end = file.seek(0, os.SEEK_END) - _TRAILER_BYTES
    file.seek(max(end, 0))
    trailer = file.read(_TRAILER_BYTES)
    if not trailer.startswith(_MARK):
        return False
    file.seek(0)
    digest = hashlib.sha256()
    for part in chunks(file, end):
        digest.update(part)
    if trailer != _MARK + digest.hexdigest().encode() + b"\n":
        raise ValueError("damaged: its bytes are not those that were written (sha256)")
    return True
