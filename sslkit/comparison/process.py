"""Starts the process of a run, and waits for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sslkit.errors import TrainingError


class StoppedError(Exception):
    """The user stopped the comparison; the run that was going on has saved its state."""


def run_in_process(recipe: str, overrides: Sequence[str]) -> Path:
    """Makes one run, see `sslkit.comparison.worker`, and returns its folder.

    Raises TrainingError where the run failed, and StoppedError on Ctrl-C and SIGTERM."""
    command = [sys.executable, "-m", "sslkit.comparison.worker"]
    asked = json.dumps({"recipe": recipe, "overrides": list(overrides)})
    with (
        interrupted_by_sigterm(),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run,
    ):
        assert run.stdin is not None
        assert run.stdout is not None
        try:
            run.stdin.write(asked + "\n")
            run.stdin.flush()  # left open: its end tells the run that this process is gone
            answer = run.stdout.read()
        except KeyboardInterrupt:
            run.terminate()  # on Ctrl-C it had the signal too; a second one changes nothing
            run.stdout.read()
            raise StoppedError from None
        except BrokenPipeError:
            answer = ""
        code = run.wait()
    return _folder(answer, code)


def _folder(answer: str, code: int) -> Path:
    lines = answer.splitlines()
    try:
        found = json.loads(lines[-1])
    except (ValueError, IndexError):
        raise TrainingError(
            f"its process ended with {code}, see the lines above; traceback.txt in its run folder "
            "has the rest"
        ) from None
    if "error" in found:
        raise TrainingError(found["error"])
    if found["status"] != "finished":
        raise StoppedError
    return Path(found["run_dir"])


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
