"""Several ranks as real processes that are forked from the test: they see its monkeypatches, start
at once, and meet over gloo as those of torchrun do."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
import torch

from sslkit.parallel.finding import find_world
from sslkit.parallel.world import World
from sslkit.testing.forked import forks_compute_gradients

T = TypeVar("T")
LIMIT_S = 240.0


class LostRankError(Exception):
    """A rank that left neither a result nor an error."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def on_ranks(work: Callable[[World], T], size: int = 2, *, limit_s: float = LIMIT_S) -> list[Any]:
    """What `work` returns, or raises, on each rank. What it returns has to be picklable; ranks
    share no memory with the test. A rank that is killed gives LostRankError; one that is frozen is
    killed when the others have ended."""
    if not forks_compute_gradients():
        pytest.skip("beside a GPU, forks compute no gradients; CUDA_VISIBLE_DEVICES= hides it")
    with TemporaryDirectory() as folder:
        port = free_port()
        sys.stdout.flush(), sys.stderr.flush()
        children = [_fork(work, rank, size, port, Path(folder)) for rank in range(size)]
        until = time.monotonic() + limit_s
        waiting = set(children)
        while waiting:
            waiting = {pid for pid in waiting if os.waitpid(pid, os.WNOHANG) == (0, 0)}
            late = time.monotonic() > until
            if late or all(_is_frozen(pid) for pid in waiting):
                for pid in waiting:
                    os.kill(pid, 9)
                    os.waitpid(pid, 0)
                if late and waiting:
                    pytest.fail(f"{len(waiting)} of {size} ranks did not end in {limit_s} s")
                break
            time.sleep(0.01)
        return [_end_of(Path(folder) / str(rank)) for rank in range(size)]


def _is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _fork(work: Callable[[World], Any], rank: int, size: int, port: int, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # Also for fixtures of a module, which are made before those of a test.
        torch.set_num_threads(1)
        os.environ.update(launch_variables(rank, size, port))
        outcome = _outcome(work)
        (folder / f"{rank}.part").write_bytes(pickle.dumps(outcome))
        (folder / f"{rank}.part").rename(folder / str(rank))
        code = 0
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def launch_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _outcome(work: Callable[[World], Any]) -> Any:
    try:
        world = find_world()
        with world.reporting():
            return work(world)
    except BaseException as error:
        error.__traceback__ = None
        return error


def _end_of(path: Path) -> Any:
    if not path.exists():
        return LostRankError(path.name)
    return pickle.loads(path.read_bytes())  # noqa: S301
