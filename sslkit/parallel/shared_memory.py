"""Memory that the ranks of one machine share, for what each of them would otherwise hold."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .world import World

_MEMORY = Path("/dev/shm")  # noqa: S108  (a file there is memory; its name is not to be guessed)
_SPARE = 64 * 2**20
"""Bytes that are left free there."""


def shared_empty(world: World, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor that is the same memory on all ranks of a machine. It goes with the
    last process that holds it. All ranks of the world call this together.

    Where memory of this kind is scarce, as in many containers, it is a file of the temporary
    folder, which the system keeps in memory as far as there is room."""
    if world.local_size == 1:
        return torch.empty(*shape, dtype=dtype)
    count = math.prod(shape)
    mine = _create(count * dtype.itemsize) if world.local_rank == 0 else None
    world.barrier()  # for as long as it takes: others may still be reading
    made = world.collect((socket.gethostname(), mine))
    # The leader of a machine has the lowest rank there; several may have one name.
    path = next(
        path
        for name, path in reversed(made[: world.rank + 1])
        if path is not None and name == socket.gethostname()
    )
    tensor = torch.from_file(path, shared=True, size=count, dtype=dtype).view(*shape)
    world.barrier()
    if mine is not None:
        Path(mine).unlink()
    return tensor


def _create(nbytes: int) -> str:
    room = shutil.disk_usage(_MEMORY).free - _SPARE if _MEMORY.is_dir() else 0
    folder = str(_MEMORY) if nbytes <= room else None
    handle, path = tempfile.mkstemp(prefix="sslkit-", dir=folder)
    try:
        os.posix_fallocate(handle, 0, max(nbytes, 1))  # a full disk is found here, not by a signal
    except OSError:
        Path(path).unlink()
        raise
    finally:
        os.close(handle)
    return path
