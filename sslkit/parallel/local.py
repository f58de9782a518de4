"""Several processes on this machine: `sslkit run --nproc N`. This one starts them, passes signals
on and waits; it imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from sslkit import environment_variables as variables
from sslkit.errors import RecipeError

from .launch import read_launch

_FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_GRACE_S = 20.0
"""How long the others have to end by themselves after one has failed, and again after SIGTERM."""
_LIFELINE = 1  # PR_SET_PDEATHSIG of Linux


def is_to_start(count: int) -> bool:
    """Whether so many processes are still to be started: this is none of them. Raises RecipeError
    where another number was."""
    launch = read_launch()
    if launch is not None and launch.size > 1 and launch.size != count:
        raise RecipeError(
            f"--nproc: {count}, but {launch.launcher} has started {launch.size} processes; leave "
            "--nproc away there"
        )
    return count > 1 and (launch is None or launch.size == 1)


def run_processes(command: Sequence[str], count: int) -> int:
    """Runs a command in `count` processes that know of each other as torchrun's do. Returns the
    exit code of the first one that fails, 1 where a signal ended it; 0 where none does."""
    port = _free_port()
    threads = str(max(1, (os.cpu_count() or 1) // count))
    processes: list[subprocess.Popen[bytes]] = []
    previous = {}

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for name in _FORWARDED:
        if (known := getattr(signal, name, None)) is not None:
            previous[known] = signal.signal(known, forward)
    try:
        for rank in range(count):
            environment = {
                variables.OMP_NUM_THREADS.name: threads,
                **os.environ,
                variables.RANK.name: str(rank),
                variables.WORLD_SIZE.name: str(count),
                variables.LOCAL_RANK.name: str(rank),
                variables.LOCAL_WORLD_SIZE.name: str(count),
                variables.MASTER_ADDR.name: "127.0.0.1",
                variables.MASTER_PORT.name: str(port),
            }
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    process_group=0,  # a Ctrl-C of the terminal reaches them through this one
                    preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                )
            )
        return _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for known, handler in previous.items():
            signal.signal(known, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all to end; those that outlive a failed one for long are ended."""
    code, since, asked = 0, None, False
    while True:
        for rank, process in enumerate(processes):
            ended = process.poll()
            if ended and not code:
                code, since = (1 if ended < 0 else ended), time.monotonic()
                if ended < 0:
                    _say(f"rank {rank} was ended by {signal.Signals(-ended).name}")
        running = [process for process in processes if process.poll() is None]
        if not running:
            return code
        if since is not None and time.monotonic() - since > _GRACE_S:
            for process in running:
                process.kill() if asked else process.terminate()
            asked, since = True, time.monotonic()
        time.sleep(0.05)


def _say(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _end_with_parent() -> None:
    """Has the system end this process where the one that started it is gone."""
    ctypes.CDLL(None).prctl(_LIFELINE, signal.SIGTERM)
