"""What a person sees while a run is going on: a progress bar on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output holds results only."""

from __future__ import annotations

import math
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from sslkit.errors import printable
from sslkit.evaluation.scores import is_share
from sslkit.parallel.world import World

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_SHOWN = {"train/loss": "loss", "train/lr": "lr"}


WIDTH = 100
"""Columns of a plain line of metrics, at most."""

_ACCURACY = re.compile(r"eval/([^/]+)/top1(_balanced)?")
_PREFERRED = ("knn", "linear")


class Display:
    """Plain lines, one screen wide, for logs. All numbers are in `metrics.jsonl`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._total_steps = 0
        self._first_step = 0
        self._since = time.monotonic()
        self._accuracy = Accuracy()

    def start(self, total_steps: int, step: int) -> None:
        """Training begins, or goes on, after `step` steps."""
        self._total_steps, self._first_step = total_steps, step
        self._since = time.monotonic()
        self.message(f"training: step {step} of {total_steps}")

    def advance(self, step: int) -> None:
        """A step is done."""

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics were logged."""
        self._accuracy.see(metrics)
        if "train/loss" in metrics:
            self.message(self._training_line(metrics, step))
        else:
            for line in evaluation_lines(metrics, self._place(step)):
                self.message(line)

    def _training_line(self, metrics: Mapping[str, float], step: int) -> str:
        parts = [self._place(step)]
        parts += [f"{name} {metrics[key]:.4g}" for key, name in _SHOWN.items() if key in metrics]
        if (speed := metrics.get("perf/images_per_second")) is not None:
            parts.append(f"{speed:,.0f} img/s")
        parts += [self._time_left(step), str(self._accuracy)]
        return "  ".join(part for part in parts if part)[:WIDTH]

    def _place(self, step: int) -> str:
        if not self._total_steps:
            return f"step {step}"
        return f"step {step}/{self._total_steps} {step / self._total_steps:.0%}"

    def _time_left(self, step: int) -> str:
        """From the mean over this process, evaluations included."""
        done = step - self._first_step
        if done <= 0 or not 0 < step < self._total_steps:
            return ""
        seconds = (time.monotonic() - self._since) / done * (self._total_steps - step)
        return f"left {timedelta(seconds=math.ceil(seconds))}"

    def message(self, text: str) -> None:
        """A line of text."""
        print(printable(text), file=self.stream, flush=True)

    def close(self) -> None:
        """Training ended, for whatever reason."""


class Accuracy:
    """The most telling accuracy that is known: of the last evaluation, by kNN where it has one; of
    the online probe on training batches where there was no evaluation yet."""

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._probe: float | None = None

    def see(self, metrics: Mapping[str, float]) -> None:
        """Metrics were logged."""
        self._probe = metrics.get("train/online_probe/top1", self._probe)
        for key, value in metrics.items():
            if (found := _ACCURACY.fullmatch(key)) and math.isfinite(value):
                name = found[1]
                self._last[name] = value
                self._best[name] = max(value, self._best.get(name, value))

    def __str__(self) -> str:
        if not self._last:
            return "" if self._probe is None else f"probe {self._probe:.1%} (train)"
        name = next((name for name in _PREFERRED if name in self._last), next(iter(self._last)))
        last, best = self._last[name], self._best[name]
        return f"{name} {last:.1%}" + (f" (best {best:.1%})" if best > last else "")


def evaluation_lines(metrics: Mapping[str, float], place: str) -> list[str]:
    """What an evaluation found, on as many lines as it takes; without parts of other metrics, such
    as `collapse/embedding_spread/z`."""
    pairs = []
    for key, value in metrics.items():
        protocol, _, metric = key.removeprefix("eval/").partition("/")
        if protocol == "perf" or "/" in metric:
            continue
        name = f"{protocol}/{metric}".replace(" ", "\xa0")
        shown = f"{value:.1%}" if is_share(metric) else f"{value:.4g}"
        pairs.append(f"{name}\xa0{shown}")
    lines = textwrap.wrap(
        f"{place}  {'  '.join(pairs)}",
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


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
        self._accuracy.see(metrics)
        if "train/loss" in metrics:
            speed = metrics.get("perf/images_per_second", math.nan)
            parts = (
                f"loss {metrics['train/loss']:.4g}",
                f"{speed:,.0f} img/s",
                str(self._accuracy),
            )
            self._bar.update(self._task, completed=step, note="  ".join(p for p in parts if p))
        elif shown := {key: value for key, value in metrics.items() if key.startswith("eval/")}:
            for line in evaluation_lines(shown, f"step {step}"):
                self.message(line)

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
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


class EachOnce(Silent):
    """Passes each message on once: runs that share their data say the same of it."""

    def __init__(self, display: Display) -> None:
        super().__init__(display.stream)
        self._display = display
        self._said: set[str] = set()

    def message(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._display.message(text)


def display_of(world: World, display: Display) -> Display:
    """The display on rank 0, a silent one on the others."""
    return display if world.is_first else Silent()


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
