"""A run made once more, in a process of its own: `python -m sslkit.workflows.rerun REQUEST`.

A process of its own, as threads, torch's settings and what was imported must be those of a run,
which may have several. REQUEST is a JSON object: `recipe`, `overrides`, `fork` (a checkpoint or
null), `until` (a step or null), `home` (where the first run was started). Everything goes to
standard error. The folder that it makes says how it ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslkit.engine.display import Display, make_display
from sslkit.engine.signals import StopSignals
from sslkit.errors import RankError, RecipeError, SSLKitError, printable
from sslkit.host.plugin_errors import describe_failure


def main() -> int:
    """Makes the run, up to a step where one is asked for. Returns the exit code."""
    asked = json.loads(sys.argv[1])
    os.dup2(2, 1)  # standard output is the result of the command that waits
    try:
        return _run(asked)
    except RankError as error:
        if not error.said:
            _say(str(error))
        sys.stderr.flush()
        os._exit(error.exit_code)  # what the interpreter would wait for may hang
    except RecipeError as error:
        home = asked["home"]
        there = f"; the run was started in {home}" if home not in (None, str(Path.cwd())) else ""
        _say(f"{error}{there}")
        return error.exit_code
    except SSLKitError as error:
        _say(str(error))
        return error.exit_code
    except Exception as error:  # a plugin's, or ours: the run folder keeps the traceback
        _say(describe_failure(error))
        return 1


def _run(asked: Mapping[str, Any]) -> int:
    from sslkit.workflows.train import start

    fork = None if asked["fork"] is None else Path(asked["fork"])
    with StopSignals(at_once=True) as stop:
        display = make_display(sys.stderr)
        if asked["until"] is not None:
            display = StoppingDisplay(display, stop, asked["until"])
        result = start(asked["recipe"], asked["overrides"], fork=fork, display=display, stop=stop)
    as_asked = (stop.requested or "").startswith(StoppingDisplay.WHO)  # "... on rank 0", too
    return 0 if result.status == "finished" or as_asked else 1


class StoppingDisplay(Display):
    """Shows what another one shows, and asks for a stop after a step, as a signal would: the
    schedules are those of the whole run."""

    WHO = "--until"

    def __init__(self, shown: Display, stop: StopSignals, until: int) -> None:
        super().__init__(shown.stream)
        self._shown = shown
        self._stop = stop
        self._until = until

    def start(self, total_steps: int, step: int) -> None:
        self._shown.start(total_steps, step)

    def advance(self, step: int) -> None:
        self._shown.advance(step)
        if step >= self._until and self._stop.requested is None:
            self._stop.requested = self._stop.got = self.WHO

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._shown.metrics(metrics, step)

    def message(self, text: str) -> None:
        self._shown.message(text)

    def close(self) -> None:
        self._shown.close()


def _say(message: str) -> None:
    for line in printable(message).splitlines():
        print(f"error: {line}", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first step: nothing is lost
        sys.exit(130)
