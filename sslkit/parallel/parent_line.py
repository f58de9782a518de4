"""What `sslkit run --nproc` and its ranks tell each other: a rank, that it lives; the parent, which
of the others has ended without a word, and by what. Imports no torch."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from sslkit import environment_variables as variables


@dataclass(frozen=True)
class Gone:
    """A rank that could say nothing any more."""

    rank: int
    why: str
    """`was ended by SIGKILL` and the like."""
    speak: bool
    """Whether the rank that hears this tells the user."""

    def __str__(self) -> str:
        return f"rank {self.rank} {self.why}"


class ToRank:
    """The parent's end of the line to one rank."""

    def __init__(self) -> None:
        self._mine, self._theirs = socket.socketpair()
        self._mine.setblocking(False)
        self._heard: float | None = None

    @property
    def variable(self) -> dict[str, str]:
        """Where the rank finds its end."""
        return {variables.SSLKIT_PARENT_LINE.name: str(self._theirs.fileno())}

    @property
    def handle(self) -> int:
        """The rank's end, to be inherited."""
        return self._theirs.fileno()

    def started(self) -> None:
        """The rank has its end now."""
        self._theirs.close()

    def silent_s(self) -> float:
        """For how long the rank has given no sign of life; 0 before its first, which comes after
        what it imports."""
        with suppress(OSError):
            while self._mine.recv(4096):
                self._heard = time.monotonic()
        return 0.0 if self._heard is None else time.monotonic() - self._heard

    def tell(self, gone: Gone) -> None:
        """Says that another rank is gone."""
        with suppress(OSError):
            self._mine.sendall(json.dumps(asdict(gone)).encode() + b"\n")

    def close(self) -> None:
        """Ends the line."""
        self._mine.close()


class ToParent:
    """A rank's end of the line. Without such a parent it is silent."""

    def __init__(self) -> None:
        number = variables.SSLKIT_PARENT_LINE.number()
        self._line: socket.socket | None = None
        self._text = b""
        self._lock = threading.Lock()
        self.gone: dict[int, Gone] = {}
        """Which ranks have ended without a word, as far as the parent has said."""
        if number is not None:
            with suppress(OSError):  # left over from another start
                self._line = socket.socket(fileno=number)
                self._line.setblocking(False)
                os.set_inheritable(number, False)

    @property
    def is_there(self) -> bool:
        """Whether there is such a parent."""
        return self._line is not None

    def beat(self) -> None:
        """A sign of life."""
        if self._line is not None:
            with suppress(OSError):
                self._line.send(b".")

    def listen(self) -> None:
        """Hears what was said since the last call."""
        if self._line is None:
            return
        with self._lock:
            with suppress(OSError):
                while said := self._line.recv(4096):
                    self._text += said
            *lines, self._text = self._text.split(b"\n")
            for line in lines:
                gone = Gone(**json.loads(line))
                self.gone[gone.rank] = gone
