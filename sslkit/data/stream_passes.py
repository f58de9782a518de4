"""Positions of a stream, read from several threads in nearly rising order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from sslkit.api import StreamReader
from sslkit.errors import DataError

_SLACK = 4096
"""Samples beyond those shuffled among each other that a pass reads ahead, and holds, at most: the
threads of the loader ask for the samples of a few batches out of turn."""
_PASSES = 4
"""Open at once: that of the training, that of an evaluation, and for replacements."""


class StreamPasses:
    """Reads a stream by position: each pass goes from front to back and holds what was passed over
    until it is asked for. A position that lies behind all passes, or far ahead, opens another, so
    that what is read never depends on what was read before; only the time does. Thread-safe."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._most = 2 * reader.shuffle + _SLACK
        self._passes: list[_Pass] = []
        """The one used last is the last."""
        self._lock = threading.Lock()

    def read(self, index: int) -> NDArray[Any]:
        """The sample at a position. Raises what the reader raises, and DataError where it ends."""
        with self._lock:
            stored = self._stored(index)
        return self._reader.decode(stored)

    def _stored(self, index: int) -> Any:
        found = self._find(index)
        try:
            stored = found.take(index, self._most)
        except BaseException:
            found.close()
            raise
        self._passes = [*[each for each in self._passes if each is not found], found]
        for old in self._passes[:-_PASSES]:
            old.close()
        del self._passes[:-_PASSES]
        return stored

    def _find(self, index: int) -> _Pass:
        """The pass that holds a position, or comes to it soonest, or a new one; it is out of the
        list until it has done its work, since one that failed cannot go on."""
        holding = [each for each in self._passes if index in each.held]
        ahead = [each for each in self._passes if 0 <= index - each.position < self._most]
        if not holding and not ahead:
            start = index - index % self._reader.shuffle
            return _Pass(self._reader, start)
        found = holding[0] if holding else max(ahead, key=lambda each: each.position)
        self._passes.remove(found)
        return found


class _Pass:
    """One way through the stream, from a position on."""

    def __init__(self, reader: StreamReader, start: int) -> None:
        self.position = start
        """That of the sample that comes next."""
        self.held: dict[int, Any] = {}
        """Position -> what is stored there, of those that were passed over."""
        self._samples: Iterator[Any] = iter(reader.stored(start))

    def take(self, index: int, most: int) -> Any:
        if index in self.held:
            return self.held.pop(index)
        while True:
            try:
                stored = next(self._samples)
            except StopIteration:
                raise DataError(
                    f"data: the stream ended after {self.position:,} samples; a stream goes on "
                    "for ever: let the source begin again, such as with its first shard"
                ) from None
            self.position += 1
            if self.position > index:
                return stored
            self.held[self.position - 1] = stored
            if len(self.held) > most:
                del self.held[next(iter(self.held))]

    def close(self) -> None:
        close = getattr(self._samples, "close", None)  # that of a generator: its files
        if close is not None:
            close()
