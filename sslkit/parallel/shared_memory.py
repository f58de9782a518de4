"""Memory that the ranks of one machine share, for what each of them would otherwise hold."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from .world import World

_MEMORY = Path("/dev/shm")  # noqa: S108  (a file there is memory; its name is not to be guessed)
_SPARE = 64 * 2**20
"""Bytes that are left free there."""


def shared_empty(world: World, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor that is the same memory on all ranks of a machine. It goes with the
    last process that holds it, however that ends. All ranks of the world call this together.

    Where memory of this kind is scarce, as in many containers, it is a file of the temporary
    folder, which the system keeps in memory as far as there is room."""
    if world.local_size == 1:
        return torch.empty(*shape, dtype=dtype)
    count = math.prod(shape)
    world.barrier()  # for as long as it takes: others may still be reading
    places = set(world.collect((socket.gethostname(), _process_namespace())))
    machines, namespaces = zip(*places, strict=True)
    named = None in namespaces or len(places) > len(set(machines))
    mine = _create(count * dtype.itemsize, named) if world.local_rank == 0 else None
    try:
        made = world.collect((socket.gethostname(), None if mine is None else _path(mine)))
        # The leader of a machine has the lowest rank there; several may have one name.
        path = next(
            path
            for name, path in reversed(made[: world.rank + 1])
            if path is not None and name == socket.gethostname()
        )
        tensor = torch.from_file(path, shared=True, size=count, dtype=dtype).view(*shape)
        world.barrier()
    finally:
        if mine is not None:
            mine.close()
    return tensor


def _process_namespace() -> int | None:
    """Processes with the same number know each other by the same numbers; None where the system
    does not show what files a process has open."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None


def _create(nbytes: int, named: bool) -> IO[bytes]:
    """named: it has to have a name until it is closed. Without one it leaves nothing behind where
    all processes are killed meanwhile."""
    room = shutil.disk_usage(_MEMORY).free - _SPARE if _MEMORY.is_dir() else 0
    folder = str(_MEMORY) if nbytes <= room else None
    make = tempfile.NamedTemporaryFile if named else tempfile.TemporaryFile
    file: IO[bytes] = make(prefix="sslkit-", dir=folder)
    try:
        # A full disk is found here, not by a signal.
        os.posix_fallocate(file.fileno(), 0, max(nbytes, 1))
    except OSError:
        file.close()
        raise
    return file


def _path(file: IO[bytes]) -> str:
    """Where others find it."""
    named = isinstance(file.name, str)
    return file.name if named else f"/proc/{os.getpid()}/fd/{file.fileno()}"
