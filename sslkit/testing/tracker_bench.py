"""A tracker on the bench: a run folder, the uploader of runs, and a service that can be away."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest.mock import patch

from sslkit.api import MetricPoint, RunView, Tracker
from sslkit.environment_variables import MLFLOW_TRACKING_URI
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, encode_line
from sslkit.runs.upload_state import Status, UploadState
from sslkit.tracking.uploader import TrackerUploader, points_of, tracker_class

from .laws import LawBrokenError

_T = TypeVar("_T")
_FIRST_MS = 1_700_000_000_000


class AwayError(ConnectionError):
    """The service is away."""


class Unreliable(Tracker):
    """A tracker between which and its service calls get lost."""

    def __init__(self, inner: Tracker) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.fails: dict[str, Literal["before", "after"]] = {}
        """Call -> whether it is lost on its way there, or its answer on the way back; once."""

    def _call(self, name: str, *args: Any) -> Any:
        fails = self.fails.pop(name, None)
        if fails == "before":
            raise AwayError(name)
        found = getattr(self.inner, name)(*args)
        if fails == "after":
            raise AwayError(name)
        return found

    def start(self, run: RunView, run_id: str | None) -> str | None:
        found: str | None = self._call("start", run, run_id)
        return found

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        self._call("log_metrics", points)

    def log_artifact(self, path: Path, folder: str) -> None:
        self._call("log_artifact", path, folder)

    def finish(self, status: Literal["finished", "failed", "killed"]) -> None:
        self._call("finish", status)


class Bench:
    """A run that a tracker follows. Calls of the tracker come from a thread of their own."""

    def __init__(
        self,
        tracker: Unreliable,
        home: Path,
        params: Mapping[str, str | int | float | bool | None],
        tags: Mapping[str, str],
    ) -> None:
        """home: where the tracker works, and below which the run folder lies."""
        self.tracker = tracker
        self.sent: list[MetricPoint] = []
        self._home = home
        self._clock_ms = _FIRST_MS
        self.folder = RunFolder.create(home / "runs", "check")
        self._state = UploadState(tracker_class(tracker), "check-s0", params, tags)
        self.uploader = TrackerUploader(self.folder, tracker, self._state)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends to the metrics of the run."""
        self._clock_ms += 1000
        line = MetricLine(step, self._clock_ms, metrics)
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(encode_line(line))
        self.sent += points_of(line)

    def add_file(self, name: str) -> None:
        """A file of the run that is to be uploaded."""
        (self.folder.path / name).write_text(f"{name}\n", encoding="utf-8")
        self._state.add_artifact(name, "")

    def send_all(self, status: Status | None = None) -> None:
        """Sends what there is, and how the run ended where it did."""

        def send() -> None:
            self.uploader.connect()
            while self.uploader.send_piece():
                pass
            if status is not None:
                self.uploader.finish(status)

        self.on_thread(send)

    def expect_failure(self) -> None:
        """Sends until a call fails that was to fail."""
        self.uploader = TrackerUploader(self.folder, self.tracker, self._state)
        try:
            self.send_all()
        except AwayError:
            return
        raise LawBrokenError(f"{', '.join(self.tracker.fails)} was never called")

    def resume(self) -> None:
        """As a process that goes on with the run."""
        self._state.closed, self._state.status = False, None
        self.uploader = TrackerUploader(self.folder, self.tracker, self._state)

    def saved_state(self) -> UploadState:
        """How far the tracker was fed, as it is now."""
        return copy.deepcopy(self._state)

    def forget_to(self, state: UploadState, tracker: Unreliable) -> None:
        """As a new process, with its own tracker, that knows this much."""
        self._state, self.tracker = state, tracker
        self.uploader = TrackerUploader(self.folder, tracker, state)

    def start(self, tracker: Unreliable, run_id: str) -> str | None:
        """`start` of a tracker for this run."""
        view = self._state.view(self.folder.path)
        return self.on_thread(lambda: tracker.inner.start(view, run_id))

    def stored(self, tracker: Unreliable) -> Sequence[MetricPoint] | None:
        """What the service has, as a tracker finds it that has sent nothing."""
        run_id = self._state.run_id

        def ask() -> Sequence[MetricPoint] | None:
            tracker.inner.start(self._state.view(self.folder.path), run_id)
            return tracker.inner.stored_points()

        return self.on_thread(ask)

    def on_thread(self, work: Callable[[], _T]) -> _T:
        """What `work` returns on another thread than the one that made the tracker."""
        with at_home(self._home), ThreadPoolExecutor(1) as thread:
            return thread.submit(work).result()


@contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """In this working folder, and without an address of a service in the environment, so that no
    store of the user is written to."""
    before = Path.cwd()
    environment = {k: v for k, v in os.environ.items() if k != MLFLOW_TRACKING_URI.name}
    os.chdir(folder)
    try:
        with patch.dict(os.environ, environment, clear=True):
            yield
    finally:
        os.chdir(before)
