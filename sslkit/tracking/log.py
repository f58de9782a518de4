"""`RunLog`: the one place where a run logs. Metrics go to `metrics.jsonl`; a background thread
carries them to the tracker, and a tracker that is away never stops or slows the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sslkit.api import RunView, Tracker
from sslkit.errors import RankError, TrackingError, failure_of
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, encode_line, read_lines, truncate_after
from sslkit.runs.upload_state import Status, UploadState

from .uploader import TrackerUploader, tracker_class

logger = logging.getLogger("sslkit.tracking")


@dataclass(frozen=True)
class FeedTiming:
    """When the background thread works. Seconds."""

    connect_s: float = 10.0
    """How long a run waits at its start for the service's first answer. One that refuses costs
    nothing, one that does not answer three seconds. Waiting also keeps the tracker's imports from
    racing with the run's."""
    interval_s: float = 5.0
    """The service is at most this much behind ..."""
    batch_points: int = 500
    """... or this many points."""
    retry_first_s: float = 5.0
    """Pause after the first failure; it doubles with each further one ..."""
    retry_max_s: float = 60.0
    """... up to this."""
    finish_s: float = 30.0
    """How long `RunLog.finish` waits for the rest to be sent ..."""
    lost_s: float = 8.0
    """... where another process of the run is gone: all are to end within a minute, and the service
    may be behind the same cable."""


class RunLog:
    """Logs one run. `folder` must be open for writing; before a resume call
    `folder.truncate_metrics(step)` first.

    run_id: the tracker's id of the run to continue; by default the one in `tracker.json`.
    """

    def __init__(
        self,
        folder: RunFolder,
        tracker: Tracker,
        run: RunView,
        run_id: str | None = None,
        timing: FeedTiming | None = None,
    ) -> None:
        folder.require_writable()
        self._step = truncate_after(folder.metrics, None)
        self._timing = timing or FeedTiming()
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._write_lock = threading.Lock()
        self._feed = TrackerUploader(folder, tracker, _cursor(folder, tracker, run, run_id))
        self._feed.save()
        self._wake = threading.Condition()
        self._pending = 0
        self._urgent = False
        self._stopping: Status | None = None
        self._deadline = float("inf")
        self._down = False
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sslkit-tracking", daemon=True)
        self._thread.start()
        self._answered.wait(self._timing.connect_s)

    @property
    def run_id(self) -> str | None:
        """The tracker's id of the run; None until the service has answered."""
        return self._feed.cursor.run_id

    @property
    def connected(self) -> bool:
        """Whether the service answered the last time."""
        return self._answered.is_set() and not self._down

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends to `metrics.jsonl` what holds after `step` optimiser steps. Values that are not
        finite are kept there and not sent to the tracker. Raises OSError where the disk is full."""
        self._step = max(self._step, step)
        self._append(MetricLine(step, time.time_ns() // 1_000_000, metrics))

    def log_system(self, metrics: Mapping[str, float]) -> None:
        """Like `log`, at the step of the last `log`: for `SystemSampler`, from its own thread."""
        self._append(MetricLine(self._step, time.time_ns() // 1_000_000, metrics))

    def artifact(self, path: Path | str, folder: str = "") -> None:
        """Asks for an upload of a file of the run folder into `folder` of the tracker's run. What
        the file holds when the upload happens counts; call again after it has changed."""
        root = self._feed.folder.path
        target = root / path
        relative = target.relative_to(root)  # ValueError: what lies elsewhere is not the run's
        with self._feed.lock:
            self._feed.cursor.add_artifact(relative.as_posix(), folder)
        self._feed.save()
        self._notify(urgent=True)

    def finish(self, status: Status, *, lost: bool = False) -> bool:
        """Sends the rest, at most `FeedTiming.finish_s` long, and ends the tracker's run. True
        where the tracker has everything; what it misses stays in the run folder for `sync`. A
        second call does nothing. lost: another process of the run is gone; see
        `FeedTiming.lost_s`."""
        if self._stopping is None:
            most_s = self._timing.lost_s if lost else self._timing.finish_s
            with self._write_lock:
                self._file.close()
            self._feed.cursor.status = status
            self._feed.save()
            self._deadline = time.monotonic() + most_s
            with self._wake:
                self._stopping = status
                self._wake.notify()
            self._thread.join(most_s)
            if self._thread.is_alive():
                self._feed.abandon()
            self._report_missing()
        return not self._feed.has_work()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish("finished")
        else:
            status: Status = "killed" if issubclass(kind, KeyboardInterrupt) else "failed"
            self.finish(status, lost=issubclass(kind, RankError))

    def _append(self, line: MetricLine) -> None:
        text = encode_line(line)
        with self._write_lock:
            if self._file.closed:
                raise RuntimeError("the run log is finished")
            self._file.write(text)
            self._file.flush()
        self._notify(points=len(line.metrics))

    def _notify(self, points: int = 0, urgent: bool = False) -> None:
        with self._wake:
            self._pending += points
            self._urgent = self._urgent or urgent
            if urgent or self._pending >= self._timing.batch_points:
                self._wake.notify()

    # --- The background thread -------------------------------------------------------------------

    def _work(self) -> None:
        pause = 0.0
        while True:
            self._wait(pause)
            status = self._stopping
            try:
                self._send_all()
                if status is not None and time.monotonic() < self._deadline:
                    self._feed.finish(status)
            except Exception as error:  # whatever a tracker raises: the run goes on
                self._went_away(error)
                pause = min(max(2 * pause, self._timing.retry_first_s), self._timing.retry_max_s)
            else:
                self._came_back()
                pause = 0.0
            self._answered.set()
            if status is not None:
                return

    def _wait(self, pause: float) -> None:
        """Until there is enough to send; after a failure, until the pause is over."""
        timing = self._timing
        with self._wake:
            if pause > 0:
                self._wake.wait_for(lambda: self._stopping is not None, pause)
            elif self._answered.is_set():  # the first time round it connects at once
                self._wake.wait_for(
                    lambda: (
                        self._stopping is not None
                        or self._urgent
                        or self._pending >= timing.batch_points
                    ),
                    timing.interval_s,
                )
            self._pending, self._urgent = 0, False

    def _send_all(self) -> None:
        self._feed.connect()
        while time.monotonic() < self._deadline and self._feed.send_piece():
            pass

    def _went_away(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            logger.warning(
                "tracking: %s is away (%s); the run goes on, and what it misses is kept in %s",
                type(self._feed.tracker).__name__,
                failure_of(error),
                self._feed.folder.path,
            )

    def _came_back(self) -> None:
        if self._down:
            self._down = False
            logger.warning(
                "tracking: %s is back and has everything so far", type(self._feed.tracker).__name__
            )

    def _report_missing(self) -> None:
        for path in self._feed.missing:
            logger.warning("tracking: not uploaded: %s", path)
        if self._feed.has_work():
            logger.warning(
                "tracking: %s did not get everything; the rest is kept in %s",
                type(self._feed.tracker).__name__,
                self._feed.folder.path,
            )


def add_to_run(
    folder: RunFolder, metrics: Mapping[str, float], artifacts: Sequence[Path], place: str
) -> None:
    """Adds to a run that is over: the metrics that it has no value of, at its last step and at its
    last moment, so that it lasted as long as it did; and files of its folder, for `place` of the
    tracker's run. `sync` sends both. `folder` must be open for writing."""
    folder.require_writable()
    truncate_after(folder.metrics, None)
    lines = list(read_lines(folder.metrics))
    known = {key for line in lines for key in line.metrics}
    new = {key: value for key, value in metrics.items() if key not in known}
    if new and lines:
        with folder.metrics.open("a", encoding="utf-8") as file:
            file.write(encode_line(MetricLine(lines[-1].step, lines[-1].time_ms, new)))
    cursor = UploadState.load(folder.tracker)
    if cursor is not None:
        for path in artifacts:
            cursor.add_artifact(path.relative_to(folder.path).as_posix(), place)
        cursor.save(folder.tracker)


@dataclass(frozen=True)
class SyncResult:
    """What `sync` sent."""

    run_id: str | None
    points: int
    artifacts: int
    skipped: tuple[str, ...] = ()
    """Files that were to be uploaded and cannot be, with the reason."""


def sync(folder: RunFolder, tracker: Tracker) -> SyncResult:
    """Sends what the tracker misses of a run that is over. One that was killed ends as killed.

    Where its results are there, the run had come to its end, and a kill after that took nothing
    away but the word to the tracker. `folder` must be open for writing, so that it cannot be a run
    that is still going. Raises TrackingError where the folder has no log, or the service cannot be
    reached."""
    folder.require_writable()
    cursor = UploadState.load(folder.tracker)
    if cursor is None:
        raise TrackingError(f"{folder.tracker}: missing or damaged; the run never started to log")
    truncate_after(folder.metrics, None)
    if cursor.status is None and folder.results.exists():
        cursor.status = "finished"
        if all(artifact.path != folder.results.name for artifact in cursor.artifacts):
            cursor.add_artifact(folder.results.name, "")
    feed = TrackerUploader(folder, tracker, cursor)
    try:
        if feed.has_work():
            while feed.send_piece():
                pass
            feed.finish(cursor.status or "killed")
    except Exception as error:
        raise TrackingError(
            f"{folder.path}: {type(tracker).__name__} did not take it ({failure_of(error)}); "
            "the rest stays in the folder, try again"
        ) from error
    return SyncResult(cursor.run_id, feed.points, feed.artifacts, tuple(feed.missing))


def _cursor(folder: RunFolder, tracker: Tracker, run: RunView, run_id: str | None) -> UploadState:
    """The saved cursor with this process's view of the run; a new one where there is none."""
    cursor = UploadState.load(folder.tracker)
    if cursor is None or (run_id is not None and cursor.run_id not in (None, run_id)):
        cursor = UploadState(tracker_class(tracker), run.run_name, run.params, run.tags)
    cursor.run_name, cursor.params, cursor.tags = run.run_name, run.params, run.tags
    cursor.run_id = run_id or cursor.run_id
    cursor.status, cursor.closed = None, False
    return cursor
