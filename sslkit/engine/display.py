"""What a person sees while a run is going on: a progress bar on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output holds results only."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_SHOWN = {
    "train/loss": "loss",
    "train/lr": "lr",
    "perf/images_per_second": "images_per_second",
}


class Display:
    """Plain `key=value` lines, for logs and for machines."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def start(self, total_steps: int, step: int) -> None:
        """Training begins, or goes on, after `step` steps."""
        self.message(f"training: step={step} of {total_steps}")

    def advance(self, step: int) -> None:
        """A step is done."""

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics were logged."""
        pairs = " ".join(f"{key}={value:.6g}" for key, value in metrics.items())
        self.message(f"step={step} {pairs}")

    def message(self, text: str) -> None:
        """A line of text."""
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Training ended, for whatever reason."""


class TerminalDisplay(Display):
    """A progress bar with time left, loss and speed."""

    _refresh_s = 0.1

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._last = 0.0

    def start(self, total_steps: int, step: int) -> None:
        self._bar = start_bar(self.stream)
        self._task = self._bar.add_task("train", total=total_steps, completed=step, note="")

    def advance(self, step: int) -> None:
        now = time.monotonic()
        if self._bar is not None and self._task is not None and now - self._last > self._refresh_s:
            self._last = now
            self._bar.update(self._task, completed=step)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self._bar is None or self._task is None:
            return super().metrics(metrics, step)
        training = {name: metrics[key] for key, name in _SHOWN.items() if key in metrics}
        if training:
            speed = training.pop("images_per_second", None)
            note = "  ".join(f"{name} {value:.4g}" for name, value in training.items())
            note += f"  {speed:,.0f} img/s" if speed is not None else ""
            self._bar.update(self._task, completed=step, note=note)
        shown = {key: value for key, value in metrics.items() if key.startswith("eval/")}
        if shown:
            pairs = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
            self.message(f"step {step}: {pairs}")
        return None

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            super().message(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Silent(Display):
    """Shows nothing."""

    def message(self, text: str) -> None:
        pass


def make_display(stream: TextIO | None = None) -> Display:
    """A bar where the stream is a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    return TerminalDisplay(stream) if stream.isatty() else Display(stream)


def start_bar(stream: TextIO) -> Bar:
    """A progress bar with times, which is shown from now on. Its tasks have the field `note`, a few
    words behind the times."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stream),
        speed_estimate_period=60,
    )
    bar.start()
    return bar
