"""What a person sees while images go through one after the other: packing, verifying, embedding."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from .display import start_bar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY_S = 5.0


class PackProgress:
    """Plain `key=value` lines, for logs and for machines. Called with the split, the number of its
    images that are done, and that of all."""

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        self.verb = verb
        self.stream = stream or sys.stderr
        self._split = ""
        self._start = (0.0, 0)
        self._last = 0.0

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.monotonic()
        if split != self._split:
            self._split, self._start, self._last = split, (now, done), now
            self.begin(split, done, total)
        elif now - self._last > _LINE_EVERY_S or done == total:
            self._last = now
            self.show(split, done, total, self.images_per_second(now, done))

    def images_per_second(self, now: float, done: int) -> float:
        """The mean over this split, without what was done before."""
        start, already = self._start
        return (done - already) / max(now - start, 1e-9)

    def begin(self, split: str, done: int, total: int) -> None:
        """A split begins, or goes on after `done` images."""
        print(f"{self.verb}: split={split} images={done} of={total}", file=self.stream, flush=True)

    def show(self, split: str, done: int, total: int, speed: float) -> None:
        """Some time has passed."""
        print(
            f"{self.verb}: split={split} images={done} of={total} images_per_second={speed:.0f}",
            file=self.stream,
            flush=True,
        )

    def close(self) -> None:
        """The end, for whatever reason."""


class TerminalPackProgress(PackProgress):
    """A bar for each split, with speed and time left."""

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        super().__init__(verb, stream)
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __call__(self, split: str, done: int, total: int) -> None:
        if split != self._split:
            super().__call__(split, done, total)
        elif self._bar is not None and self._task is not None:
            speed = self.images_per_second(time.monotonic(), done)
            self._bar.update(self._task, completed=done, note=f"{speed:,.0f} img/s")

    def begin(self, split: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = start_bar(self.stream)
        self._task = self._bar.add_task(
            f"{self.verb} {split}", total=total, completed=done, note=""
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_pack_progress(verb: str, stream: TextIO | None = None) -> PackProgress:
    """Bars where the stream is a terminal, plain lines elsewhere. verb: what is being done."""
    stream = stream or sys.stderr
    kind = TerminalPackProgress if stream.isatty() else PackProgress
    return kind(verb, stream)
