"""Ctrl-C and SIGTERM as a request to save and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """While active, the first SIGINT or SIGTERM only sets `requested`; a second SIGINT, and any
    signal once `at_once` is set, raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self.at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None and number == signal.SIGINT
        self.requested = signal.Signals(number).name
        if again or self.at_once:
            raise KeyboardInterrupt
