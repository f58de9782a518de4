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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from sslkit import environment_variables as variables
from sslkit.errors import RecipeError

from .launch import read_launch
from .parent_line import Gone, ToRank

_FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_GRACE_S = 45.0
"""How long rank 0 has to end by itself after another one has failed, while it gives signs of life:
it may have something to save, or to send to a tracker."""
_SHORT_GRACE_S = 10.0
"""How long all have without signs of life, the others once rank 0 has ended, and it after
SIGTERM."""
_MOST_TO_TRY = 16
"""Processes that a machine may run however few processors it has: to see what many do."""
_LIFELINE = 1  # PR_SET_PDEATHSIG of Linux


def most_processes() -> int:
    """How many processes may share a batch on this machine: more than it has processors can only
    be slower, and many more would take all of its memory before one could say so."""
    return max(os.cpu_count() or 1, _MOST_TO_TRY)


def is_to_start(count: int) -> bool:
    """Whether so many processes are still to be started: this is none of them. Raises RecipeError
    where another number was."""
    launch = read_launch(starts_others=count > 1)
    if launch is not None and launch.size > 1 and launch.size != count:
        raise RecipeError(
            f"--nproc: {count}, but {launch.launcher} has started {launch.size} processes; leave "
            "--nproc away there"
        )
    return count > 1 and (launch is None or launch.size == 1)


def run_processes(command: Sequence[str], count: int, threads: int | None = None) -> int:
    """Runs a command in `count` processes that know of each other as torchrun's do. threads: of
    each, where OMP_NUM_THREADS does not say; default: its share of the processors. Returns the
    largest of their exit codes, that of a wrong input before that of a failure; 1 for a signal."""
    port, threads = _free_port(), threads or max(1, (os.cpu_count() or 1) // count)
    ranks: list[_Rank] = []
    previous = {}

    def forward(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.process.send_signal(number)

    for name in _FORWARDED:
        if (known := getattr(signal, name, None)) is not None:
            previous[known] = signal.signal(known, forward)
    try:
        for number in range(count):  # one by one: a signal meanwhile reaches those that run
            ranks += [_start(command, number, _environment(number, count, port, threads))]
        return _wait(ranks)
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.line.close()
        for known, handler in previous.items():
            signal.signal(known, handler)


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    line: ToRank
    asked: bool = False
    """Whether it was asked to end."""

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def signal(self) -> str | None:
        """What ended it, where it could say nothing."""
        code = self.process.poll()
        return signal.Signals(-code).name if code is not None and code < 0 else None


def _environment(rank: int, count: int, port: int, threads: int) -> dict[str, str]:
    return {
        variables.OMP_NUM_THREADS.name: str(threads),
        **os.environ,
        variables.RANK.name: str(rank),
        variables.WORLD_SIZE.name: str(count),
        variables.LOCAL_RANK.name: str(rank),
        variables.LOCAL_WORLD_SIZE.name: str(count),
        variables.MASTER_ADDR.name: "127.0.0.1",
        variables.MASTER_PORT.name: str(port),
    }


def _start(command: Sequence[str], number: int, environment: dict[str, str]) -> _Rank:
    line = ToRank()
    process = subprocess.Popen(
        command,
        env={**environment, **line.variable},
        pass_fds=(line.handle,),
        process_group=0,  # a Ctrl-C of the terminal reaches them through this one
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    line.started()
    return _Rank(number, process, line)


def _wait(ranks: Sequence[_Rank]) -> int:
    """Waits for all to end; those that outlive a failed one for long are ended."""
    since, told = None, 0
    gone: dict[int, Gone] = {}
    while any(rank.runs for rank in ranks):
        for rank in ranks:
            if rank.process.poll() and since is None:
                since = time.monotonic()
        if since is None:
            _end_frozen(ranks, gone)
        else:
            _end(ranks, time.monotonic() - since)
        _note_gone(ranks, gone)
        if len(gone) > told:
            _tell(ranks, gone)
            told = len(gone)
        time.sleep(0.05)
    _note_gone(ranks, gone)  # the last of them may have gone since
    codes = [rank.process.poll() or 0 for rank in ranks]
    if gone and max(codes) <= 0:
        _say(str(next(iter(gone.values()))))  # nobody is left who could
    return max(code if code >= 0 else 1 for code in codes)


def _end_frozen(ranks: Sequence[_Rank], gone: dict[int, Gone]) -> None:
    """Ends the rank that has been silent for longest, where that is too long: stopped, or on a
    machine out of memory. The others may wait for it, and be silent for that reason."""
    limit = variables.rank_timeout_s()
    rank = max(ranks, key=lambda rank: rank.line.silent_s())
    if rank.runs and rank.line.silent_s() > limit:
        gone[rank.number] = Gone(rank.number, f"gave no sign of life for {limit} s", speak=False)
        rank.process.kill()


def _note_gone(ranks: Sequence[_Rank], gone: dict[int, Gone]) -> None:
    """Adds those that ended by a signal that was not ours."""
    for rank in ranks:
        if rank.signal is not None and not rank.asked:
            why = f"was ended by {rank.signal}"
            gone.setdefault(rank.number, Gone(rank.number, why, speak=False))


def _tell(ranks: Sequence[_Rank], gone: Mapping[int, Gone]) -> None:
    """Tells those that run who is gone; the first of them tells the user."""
    running = [rank for rank in ranks if rank.runs and rank.number not in gone]
    for rank in running:
        for each in gone.values():
            rank.line.tell(replace(each, speak=rank is running[0]))


def _end(ranks: Sequence[_Rank], seconds: float) -> None:
    """Ends those that still run so long after one has failed."""
    for rank in ranks:
        if not rank.runs:
            continue
        patient = ranks[0].runs and rank.line.silent_s() < _SHORT_GRACE_S
        if not patient or seconds > _GRACE_S + _SHORT_GRACE_S:
            if seconds > _SHORT_GRACE_S:
                rank.asked = True
                rank.process.kill()
        elif seconds > _GRACE_S and not rank.asked:
            rank.asked = True
            rank.process.terminate()


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
