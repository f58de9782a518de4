"""`sslkit run --nproc N` as a user runs it: a command, its ranks, what they print. By default it is
forked from the test, parent and ranks alike, so that nothing has to be imported."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sslkit.cli.app import main
from sslkit.parallel import local

LIMIT_S = 240.0
_IMPORTED_BY_RUNS = ("sslkit.workflows.train", "sslkit.report.terminal", "timm", "torch._dynamo")
"""Once, here, and not in each process that is forked."""


class Forked:
    """What `subprocess.Popen` is for a function: it runs in a process that is forked from here."""

    def __init__(self, call: Callable[[], None]) -> None:
        sys.stdout.flush(), sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os._exit(_code_of(call))

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Like `os.kill`, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


def _code_of(call: Callable[[], None]) -> int:
    """The exit code of a function that is all a process does."""
    code: Any = 1
    try:
        call()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
    return int(code)


def _fork_rank(
    command: Sequence[str], env: Any, pass_fds: Any, process_group: int, preexec_fn: Any
) -> Forked:
    """In place of `subprocess.Popen`, in the parent of the ranks. It passes on all files."""
    words = list(command)[command.index("sslkit") + 1 :]

    def call() -> None:
        os.setpgid(0, process_group)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        preexec_fn()
        os.environ.update(env)
        sys.argv = ["sslkit", *words]
        main()

    return Forked(call)


class Command:
    """`sslkit ARGUMENTS` in a folder, its output in files there."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        forked: bool = True,
        environment: dict[str, str] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """forked: from here, in place of a new interpreter. before: called in the process, before
        the command; its ranks inherit what it changes."""
        self.folder = folder
        self.output, self.errors = folder / "stdout.txt", folder / "stderr.txt"
        variables = {"SSLKIT_RANK_TIMEOUT": "30", **(environment or {})}
        self.started = time.monotonic()
        if not forked:
            with self.output.open("wb") as out, self.errors.open("wb") as err:
                self.process: Any = subprocess.Popen(
                    [sys.executable, "-m", "sslkit", *arguments],
                    cwd=folder, env={**os.environ, **variables}, stdout=out, stderr=err,
                    process_group=0,
                )  # fmt: skip
            return

        for module in _IMPORTED_BY_RUNS:
            importlib.import_module(module)

        def call() -> None:
            os.setpgid(0, 0)
            os.chdir(folder)
            for path, stream in ((self.output, 1), (self.errors, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            os.environ.update(variables)
            local.subprocess = SimpleNamespace(Popen=_fork_rank)  # type: ignore[attr-defined]
            sys.argv = ["sslkit", *arguments]
            torch.set_num_threads(1)  # as many in every command, whichever fixture starts it
            before()
            main()

        self.process = Forked(call)

    # --- Its processes ------------------------------------------------------------------------

    def ranks(self) -> list[int]:
        """The process ids of the ranks that run."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with suppress(OSError):
            return [int(pid) for pid in found.read_text().split()]
        return []

    def send(self, number: signal.Signals, to: str | int) -> None:
        """A signal to the `parent`, to `all` ranks, or to one of them."""
        if to == "parent":
            os.kill(self.process.pid, number)
            return
        ranks = self.ranks()
        for pid in ranks if to == "all" else [ranks[int(to)]]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The exit code. AssertionError where it does not end in time."""
        until = time.monotonic() + limit_s
        while (code := self.process.poll()) is None:
            if time.monotonic() > until:
                for pid in [*self.ranks(), self.process.pid]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.poll()
                raise AssertionError(f"did not end in {limit_s:.0f} s: {self.errors.read_text()}")
            time.sleep(0.01)
        return int(code)

    # --- What it has done ---------------------------------------------------------------------

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns once a condition holds. AssertionError where the command ends before."""
        while not condition():
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.005)

    def wait_for_step(self, step: int) -> None:
        """Returns once a step is logged."""
        self.wait_for(lambda: self.step() >= step)

    def step(self) -> int:
        """The last step that is logged; 0 where none is."""
        found = 0
        for path in self.folder.glob("runs/*/metrics.jsonl"):
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    found = max(found, json.loads(line)["step"])
        return found

    def said(self) -> list[str]:
        """The lines of standard error that are no news of the training."""
        news = ("step ", "evaluating the last epoch", "going on with ")
        lines = self.errors.read_text().splitlines()
        return [line for line in lines if line and not line.startswith(news)]
