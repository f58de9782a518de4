"""Several ranks on this machine, as processes that are forked: they see what this one has built."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.errors import failure_of
from sslkit.parallel.finding import find_world
from sslkit.parallel.world import World

from .laws import LawBrokenError

LIMIT_S = 300.0
Work = Callable[[World], Mapping[str, Tensor]]


def on_ranks(work: Work, size: int, folder: Path) -> list[dict[str, Tensor]]:
    """What `work` returns on each rank. folder: for what the ranks leave. Raises SkipTest where
    processes cannot be forked, LawBrokenError with what a rank raised."""
    if sys.platform != "linux":
        raise SkipTest("several processes are tried on Linux alone")
    context, port = multiprocessing.get_context("fork"), _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    ranks = [
        context.Process(target=_work_of_rank, args=(work, rank, size, port, folder), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(LIMIT_S)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [_outcome(folder, rank) for rank in range(size)]


def _outcome(folder: Path, rank: int) -> dict[str, Tensor]:
    error, result = folder / f"{rank}.error", folder / f"{rank}.pt"
    if error.exists():
        raise LawBrokenError(f"rank {rank}: {error.read_text(encoding='utf-8')}")
    if not result.exists():
        raise LawBrokenError(f"rank {rank} ended without a result")
    found: dict[str, Tensor] = torch.load(result, weights_only=True)
    result.unlink()
    return found


def _work_of_rank(work: Work, rank: int, size: int, port: int, folder: Path) -> None:
    # OpenMP's threads are gone after a fork, and who waits for them waits for ever.
    torch.set_num_threads(1)
    os.environ.update(_variables(rank, size, port))
    try:
        world = find_world()
        with world.reporting():
            found: dict[str, Any] = dict(work(world))
        torch.save(found, folder / f"{rank}.part")
        (folder / f"{rank}.part").rename(folder / f"{rank}.pt")
    except BaseException as error:
        (folder / f"{rank}.error").write_text(failure_of(error, 500), encoding="utf-8")
    os._exit(0)


def _variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
