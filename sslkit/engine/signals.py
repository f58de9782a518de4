"""Ctrl-C, SIGTERM and SIGUSR1 as a request to save and stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sslkit.parallel.main_thread import interrupt_main_thread

if TYPE_CHECKING:  # this is imported before torch, so that an early signal is heeded
    from sslkit.parallel.world import World

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
"""SIGUSR1 is what queues send some time before they end a job. Left alone, it would end the process
at once."""
_HEARD = getattr(signal, "SIGURG", signal.SIGTERM)
"""Wakes the main thread for what another rank got. None of those above, where the system has one
to spare: two of a kind that come before Python handles the first are one, and it would be another
rank's while this one was asked itself."""

_PATIENCE_S = 2.5


class StopSignals:
    """While active, the first signal only sets `requested`; a second SIGINT, and any signal while
    `at_once` is set, raises KeyboardInterrupt.

    A KeyboardInterrupt while `requested` is None was raised by nobody's key: by a plugin."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.requested: str | None = None
        """The signal that asks for a stop, and the rank that got it where that is another one."""
        self.at_once = at_once
        self.got: str | None = None
        """The signal that came to this process itself."""
        self._elsewhere: str | None = None
        self._agreed = False
        self._requested_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            ours = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            for number in {*ours, _HEARD}:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self, world: World) -> bool:
        """Whether one of the ranks was asked to stop: the same answer on all of them, which call
        this at the same moment. The others then stop as if they had been asked themselves. A signal
        that comes while they agree counts the next time: no other rank knows of it yet."""
        if not world.any(self.requested is not None):
            return False
        if not self._agreed:  # all of them know now, and say what they got
            self._agreed = True
            got = [(name, rank) for rank, name in enumerate(world.collect(self.got)) if name]
            if self.requested is None:
                self._note(*(f"{name} on rank {rank}" for name, rank in got[:1]))
        return True

    def hear(self, elsewhere: str) -> None:
        """Another rank got a signal, which is `SIGTERM on rank 1`: as if it had come to this one.
        To be called on another thread than the main one."""
        self._elsewhere = elsewhere
        interrupt_main_thread(_HEARD)

    @contextmanager
    def stopping_at_once(self) -> Iterator[None]:
        """For what may be cut off anywhere because all is saved, and what no other rank takes part
        in. A signal that came before is heeded on entry."""
        before = self.at_once
        try:
            self.at_once = True
            if self.requested is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self.at_once = before

    def overdue(self) -> bool:
        """Whether a stop was asked for a while ago: what still waits should wait no longer."""
        return self.requested is not None and time.monotonic() - self._requested_at > _PATIENCE_S

    def _note(self, reason: str = "a signal") -> None:
        if self.requested is None:
            self._requested_at = time.monotonic()
        self.requested = reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None and number == signal.SIGINT
        name = signal.Signals(number).name
        if number == _HEARD and self._elsewhere is not None:
            heard, self._elsewhere = self._elsewhere, None
            if self.requested is not None:
                return
            self._note(heard)
        elif name in _NAMES:
            self.got = name
            self._note(name)
        else:
            return
        if again or self.at_once:
            raise KeyboardInterrupt
