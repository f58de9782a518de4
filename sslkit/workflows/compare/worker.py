"""One run of a comparison in a process of its own: `python -m sslkit.workflows.compare.worker`.

A process per run, because peak memory on a CPU is that of the process, and because what a run
leaves behind (compiled code, warm allocators, torch's settings) must not reach the next arm.
Standard input holds one line, a JSON object with `recipe`, `overrides` and `report`; when it ends,
the process that waits for this one is gone, and this one stops at once. The last line of standard
output is a JSON object with `run_dir` and `status`, or with `error`. With `report`, earlier lines
are objects with `progress`, a few words for the user; everything goes to standard error besides.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from sslkit.engine.display import Display, make_display

_REPORT_EVERY_S = 10.0
_SHOWN = {"train/loss": "loss {:.4g}", "perf/images_per_second": "{:,.0f} images/s"}


def main() -> int:
    """Makes the run, going on with an unfinished one. Returns the exit code."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    from sslkit.errors import SSLKitError
    from sslkit.host.plugin_errors import describe_failure
    from sslkit.workflows.train import start

    try:
        display = reporting_display() if asked["report"] else make_display(sys.stderr)
        result = start(asked["recipe"], asked["overrides"], resume="auto", display=display)
    except SSLKitError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    except Exception as error:  # a plugin's, or ours: its run folder keeps the traceback
        print(json.dumps({"error": describe_failure(error)}))
        return 1
    print(json.dumps({"run_dir": str(result.run_dir), "status": result.status}))
    return 0


class ReportingDisplay(Display):
    """Plain lines, and now and then a few words on standard output for the process that waits."""

    _total = 0
    _last = -_REPORT_EVERY_S

    def start(self, total_steps: int, step: int) -> None:
        super().start(total_steps, step)
        self._total = total_steps
        self._report(f"training from step {step} of {total_steps}")

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().metrics(metrics, step)
        scores = [f"{key} {value:.4g}" for key, value in metrics.items() if key.startswith("eval/")]
        if scores:
            self._report(f"step {step}: {', '.join(scores)}")
        elif time.monotonic() - self._last >= _REPORT_EVERY_S:
            words = [form.format(metrics[key]) for key, form in _SHOWN.items() if key in metrics]
            self._report(", ".join([f"step {step} of {self._total}", *words]))

    def message(self, text: str) -> None:
        super().message(text)
        if text.startswith("warning"):
            self._report(text)

    def _report(self, words: str) -> None:
        self._last = time.monotonic()
        with suppress(BrokenPipeError):  # nobody waits any more: `_stop_with_parent` ends this run
            print(json.dumps({"progress": words}), flush=True)


class _Shown(logging.Handler):
    """Shows what the library logs, such as a tracker that is away."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.message(f"warning: {self.format(record)}")


def reporting_display() -> Display:
    """A display that reports, what the library logs included."""
    display = ReportingDisplay(sys.stderr)
    logging.getLogger("sslkit").addHandler(_Shown(display))
    return display


def _stop_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock Python wants as it ends
        pass
    os._exit(1)  # as after kill -9: the next command goes on from the last checkpoint


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first step: nothing is lost
        sys.exit(130)
