"""Checkpoints: written atomically, read without running code, any of them good to resume from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from sslkit.errors import CheckpointError

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.pt")


class Checkpoints:
    """The checkpoints of a run: `step-00001200.pt`, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a checkpoint and removes the oldest beyond `keep`. A kill at any moment leaves
        either the whole new file or none of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(self.folder)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Checkpoints by step, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as a checkpoint ({reason[:120]})") from error
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
