"""When a run is killed: after some CPU time, or before it changes a file for the n-th time."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE_EVENTS = ("os.rename", "os.remove", "os.truncate", "os.mkdir")
_STORE_EVENT = "sqlite3.connect"


@dataclass(frozen=True)
class Moment:
    """A signal, and what brings it."""

    signal: signal.Signals
    cpu_s: float | None = None
    """After this much CPU time of the process; None: at an event."""
    event: int = 0
    """Before the n-th change of a file, from 0."""

    def __str__(self) -> str:
        when = (
            f"before file change {self.event}" if self.cpu_s is None else f"at {self.cpu_s:.2f} s"
        )
        return f"{self.signal.name} {when}"

    @property
    def kind(self) -> str:
        """For the table."""
        return f"{self.signal.name} at a {'file' if self.cpu_s is None else 'time'}"


def choose_moment(generator: random.Random, cpu_s: float, events: int) -> Moment:
    """cpu_s, events: what a whole run takes. Signals that ask are a quarter of all."""
    number = generator.choices(
        [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [0.75, 0.125, 0.125]
    )[0]
    if generator.random() < 0.5:
        return Moment(number, cpu_s=generator.uniform(0.02, 0.8 * cpu_s))
    return Moment(number, event=generator.randrange(events))


def file_changes() -> Callable[[], int]:
    """Counts, from now on, how often this process changes files."""
    count = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        count += _is_change(event, arguments)

    sys.addaudithook(hear)
    return lambda: count


def arm(moment: Moment, reached: Path) -> None:
    """Makes this process send itself the signal at its moment. A moment of CPU time is kept by a
    thread; a moment of files by an audit hook, in whichever thread changes the file."""
    if moment.cpu_s is None:
        _at_file_change(moment, reached)
        return
    threading.Thread(target=_at_time, args=(moment, reached), daemon=True).start()


def _at_time(moment: Moment, reached: Path) -> None:
    import time

    assert moment.cpu_s is not None
    start = time.process_time()
    while time.process_time() - start < moment.cpu_s:
        time.sleep(0.001)
    _send(moment, reached)


def _at_file_change(moment: Moment, reached: Path) -> None:
    count = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if _is_change(event, arguments):
            count += 1
            if count == moment.event + 1:
                _send(moment, reached)

    sys.addaudithook(hear)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event in _FILE_EVENTS or event == _STORE_EVENT:
        return True
    return event == "open" and isinstance(arguments[1], str) and arguments[1] not in ("r", "rb")


def _send(moment: Moment, reached: Path) -> None:
    os.close(os.open(reached, os.O_CREAT | os.O_WRONLY))
    os.kill(os.getpid(), moment.signal)
