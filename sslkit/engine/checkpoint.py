"""Checkpoints: written atomically, read without running code, any of them good to resume from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from sslkit.errors import CheckpointError, TrainingError
from sslkit.nn.weights import load_torch_file

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.pt")


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
        path = self.folder / f"step-{step:08d}.pt"
        temporary = self.folder / "saving.tmp"  # one name, so that kills do not fill the disk
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save({"format": FORMAT, "step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):  # torch raises its own error over the system's
                raise
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({cause.strerror}); mend that, then "
                "resume the run"
            ) from error
        _sync_folder(self.folder)
        paths = self.paths()
        end = paths.index(path) + 1
        for old in paths[: max(end - self.keep, 0)] + paths[end:]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Checkpoints by step, oldest first."""
        if not self.folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]

    def load_newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that can be read (None where there is none yet), and one message
        for each newer one that is damaged. Raises CheckpointError if all are damaged."""
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                return load(path), damaged
            except CheckpointError as error:
                damaged.append(str(error))
        if damaged:
            raise CheckpointError("; ".join(damaged))
        return None, []


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; holds tensors and plain values only (`weights_only`)."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        state = load_torch_file(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as a checkpoint: {error}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: not a checkpoint of sslkit")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: written in checkpoint format {state['format']}, this version reads {FORMAT}"
        )
    return state


def _sync_folder(folder: Path) -> None:
    """Makes the rename survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
