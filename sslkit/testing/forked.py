"""Several ranks on this machine, as processes that are forked: they see what this one has built."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.errors import RankError
from sslkit.host.plugin_errors import describe_failure
from sslkit.parallel.finding import find_world
from sslkit.parallel.world import World

from .laws import LawBrokenError, UntriedError

LIMIT_S = 300.0
Work = Callable[[World], Mapping[str, Tensor]]


def on_ranks(
    work: Work, size: int, folder: Path, module: str, limit_s: float = LIMIT_S
) -> list[dict[str, Tensor]]:
    """What `work` returns on each rank. folder: for what the ranks leave. module: of the component,
    by which the line that fails is found. Raises UntriedError where processes cannot be forked,
    LawBrokenError with what the first rank that failed raised."""
    if sys.platform != "linux":
        raise UntriedError("several processes are tried on Linux alone")
    context, port = multiprocessing.get_context("fork"), _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    ranks = [
        context.Process(
            target=_work_of_rank,
            args=(work, _Place(rank, size, port), folder, module),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    ends = time.monotonic() + limit_s
    try:
        for process in ranks:
            process.join(max(ends - time.monotonic(), 0.0))
        late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    _raise_first(folder)
    if late:
        raise LawBrokenError(
            f"rank {late[0]} of {size} still waits for others after {limit_s:.0f} s"
        )
    return [_result(folder, rank) for rank in range(size)]


def forks_compute_gradients() -> bool:
    """Whether processes that are forked from this one can. They cannot once this one has computed
    gradients where torch knows of a GPU, or of the one that its compiler imagines: the threads that
    autograd has for it are gone after a fork."""
    if sys.platform != "linux":
        return True  # `on_ranks` says why not
    if not (pid := os.fork()):
        code = 1
        with suppress(BaseException):
            torch.ones(1, requires_grad=True).backward()  # type: ignore[no-untyped-call]
            code = 0
        os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _raise_first(folder: Path) -> None:
    """Raises what failed first: a rank that says it has lost another one failed after that."""
    for path in (*sorted(folder.glob("*.error")), *sorted(folder.glob("*.lost"))):
        raise LawBrokenError(f"rank {path.stem}: {path.read_text(encoding='utf-8')}")


def _result(folder: Path, rank: int) -> dict[str, Tensor]:
    result = folder / f"{rank}.pt"
    if not result.exists():
        raise LawBrokenError(f"rank {rank} ended without a result")
    found: dict[str, Tensor] = torch.load(result, weights_only=True)
    result.unlink()
    return found


@dataclass(frozen=True)
class _Place:
    """A rank among others."""

    rank: int
    size: int
    port: int

    def variables(self) -> dict[str, str]:
        """What torchrun sets; GPUs are hidden, since the kit computes on the CPU."""
        rank, size = str(self.rank), str(self.size)
        return {
            "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip


def _work_of_rank(work: Work, place: _Place, folder: Path, module: str) -> None:
    # OpenMP's threads are gone after a fork, and who waits for them waits for ever.
    torch.set_num_threads(1)
    os.environ.update(place.variables())
    rank = place.rank
    try:
        world = find_world()
        with world.reporting():
            found: dict[str, Any] = dict(work(world))
        torch.save(found, folder / f"{rank}.part")
        (folder / f"{rank}.part").rename(folder / f"{rank}.pt")
    except BaseException as error:
        own = error.__cause__ if isinstance(error, RankError) and error.said else error
        kind = "lost" if own is None or isinstance(own, RankError) else "error"
        said = describe_failure(own or error, module)
        (folder / f"{rank}.{kind}").write_text(said, encoding="utf-8")
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
