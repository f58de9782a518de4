"""Starts the processes of runs, one on each device at a time, and waits for them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sslkit.engine.display import Display
from sslkit.errors import TrainingError, first_line_of
from sslkit.report.terminal import display_path

from .devices import Device


class StoppedError(Exception):
    """The user stopped the comparison; the runs that were going on have saved their state."""


@dataclass(frozen=True)
class Job:
    """A run that is to be made."""

    what: str
    """What messages call it."""
    recipe: str
    overrides: Sequence[str]
    log: Path
    """Where its output goes when it is not alone."""


def run_jobs(jobs: Sequence[Job], devices: Sequence[Device], display: Display) -> dict[int, str]:
    """Makes the runs in this order, each as soon as a device is free. Returns position of a job ->
    why it failed; a failure stops no other run.

    devices: none: one run after the other, which shows its own progress; otherwise the output of a
    run goes to its log, and `display` shows where each of them is. Raises StoppedError on Ctrl-C
    and SIGTERM, when all runs have ended."""
    free = deque(devices or [Device("that of the recipe")])
    waiting = deque(enumerate(jobs))
    failed: dict[int, str] = {}
    with interrupted_by_sigterm(), selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                while waiting and free:
                    position, job = waiting.popleft()
                    run = RunProcess(position, job, free.popleft(), logged=bool(devices))
                    selector.register(run.output, selectors.EVENT_READ, run)
                    display.message(run.announcement)
                for key, _ in selector.select():
                    run = key.data
                    for line in run.receive():
                        display.message(f"{run.job.what}: {line}")
                    if run.ended:
                        selector.unregister(run.output)
                        free.append(run.device)
                        _finish(run, failed, display)
        except KeyboardInterrupt:
            raise StoppedError from None
        finally:
            stop_all([key.data for key in selector.get_map().values()])
    return failed


def _finish(run: RunProcess, failed: dict[int, str], display: Display) -> None:
    try:
        run.outcome()
    except TrainingError as error:
        failed[run.position] = first_line_of(error)
        display.message(f"{run.job.what}: failed: {error}")
    else:
        if run.logged:
            display.message(f"{run.job.what}: done in {time.monotonic() - run.started:,.0f} s")


def stop_all(runs: Sequence[RunProcess]) -> None:
    """Lets runs save their state and end, and waits for them; at another Ctrl-C without."""
    try:
        for run in runs:
            run.process.terminate()  # on Ctrl-C it had the signal too; a second one changes nothing
        for run in runs:
            run.wait()
    except KeyboardInterrupt:
        for run in runs:
            run.process.kill()
            run.wait()


class RunProcess:
    """A run in a process of its own, see `sslkit.workflows.compare.worker`."""

    def __init__(self, position: int, job: Job, device: Device, *, logged: bool) -> None:
        self.position = position
        self.job = job
        self.device = device
        self.logged = logged
        self.started = time.monotonic()
        self.ended = False
        self._rest = b""
        self._answer: dict[str, Any] = {}
        errors = None
        if logged:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            errors = job.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sslkit.workflows.compare.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, **device.environment},
        )  # fmt: skip
        if errors is not None:
            errors.close()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.output = self.process.stdout
        asked = {"recipe": job.recipe, "overrides": list(job.overrides), "report": logged}
        with suppress(BrokenPipeError):  # it ended at once; `outcome` says so
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()  # left open: its end tells the run that we are gone

    @property
    def announcement(self) -> str:
        """What is said as it begins."""
        if not self.logged:
            return self.job.what
        return f"{self.job.what}: on {self.device.name}, output in {display_path(self.job.log)}"

    def receive(self) -> list[str]:
        """Lines for the user, as far as they have come; waits where nothing has."""
        part = os.read(self.output.fileno(), 1 << 16)
        self.ended = not part
        *lines, self._rest = (self._rest + part).split(b"\n")
        shown = []
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:  # of code that prints to standard output
                continue
            if isinstance(found, dict):
                shown += [str(found["progress"])] if "progress" in found else []
                self._answer = found if "progress" not in found else self._answer
        return shown

    def outcome(self) -> Path:
        """The run folder, after the end. Raises TrainingError where the run failed, and
        StoppedError where it was stopped."""
        code = self.wait()
        if "error" in self._answer:
            raise TrainingError(self._answer["error"])
        if "status" not in self._answer:
            where = display_path(self.job.log) if self.logged else "the lines above"
            raise TrainingError(
                f"its process ended with {code}, see {where}; traceback.txt in its run folder has "
                "the rest"
            )
        if self._answer["status"] != "finished":
            raise StoppedError
        return Path(self._answer["run_dir"])

    def wait(self) -> int:
        """Waits for its end; returns the exit code."""
        while not self.ended:
            self.receive()
        self.output.close()
        code = self.process.wait()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        return code


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does; Python allows it in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
