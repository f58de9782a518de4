"""Moves what a run folder holds to its tracker, one acknowledged piece at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslkit.api import MetricPoint, Tracker
from sslkit.files import open_file, reason
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, read_from
from sslkit.runs.upload_state import PendingArtifact, Status, UploadState


class TrackerUploader:
    """The way from a run folder to a tracker. Every method that talks to the tracker may raise what
    the tracker raises; then nothing is lost, and the next call starts with `Tracker.start`, which
    finds out what the service has. These methods belong to one thread; `lock` guards the cursor."""

    def __init__(self, folder: RunFolder, tracker: Tracker, cursor: UploadState) -> None:
        self.folder = folder
        self.tracker = tracker
        self.cursor = cursor
        self.lock = threading.Lock()
        self.points = 0
        """Points that the service has acknowledged through this object."""
        self.artifacts = 0
        self.missing: list[str] = []
        """Files that were to be uploaded and cannot be, with the reason."""
        self._started = False
        self._abandoned = False
        cursor.offset = min(cursor.offset, self._size())  # the file was cut for a resume
        if cursor.tracker != tracker_class(tracker):
            cursor.forget()
            cursor.tracker = tracker_class(tracker)

    def save(self) -> None:
        """Makes the cursor last."""
        with self.lock:
            self._save()

    def abandon(self) -> None:
        """From here on nothing is written, whatever a call that hangs may still come to: the folder
        may belong to another process by then."""
        with self.lock:
            self._abandoned = True

    def connect(self) -> None:
        """Opens the run at the service unless that is done."""
        if self._started:
            return
        known = self.cursor.run_id
        run_id = self.tracker.start(self.cursor.view(self.folder.path), known)
        with self.lock:
            if run_id != known:
                self.cursor.forget()  # the service lost the run, or never had it
                self.cursor.run_id = run_id
            self._save()
        self._started = True

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Connected to the service. Trackers raise what their libraries raise: whatever it is, it
        goes on to the caller, who tries again later, and the next attempt connects anew."""
        try:
            self.connect()
            yield
        except Exception:
            self._started = False
            raise

    def send_piece(self) -> bool:
        """Sends about 64 KiB of metrics, or one artifact. False where there is nothing to send."""
        with self._connection():
            return self._send_metrics() or self._send_artifact()

    def finish(self, status: Status) -> None:
        """Tells the service how the run ended."""
        with self._connection():
            self.tracker.finish(status)
        with self.lock:
            self.cursor.closed = True
            self._save()

    def has_work(self) -> bool:
        """Whether the service misses something."""
        with self.lock:
            waiting = any(not artifact.sent for artifact in self.cursor.artifacts)
            return waiting or self.cursor.offset < self._size() or not self.cursor.closed

    def _send_metrics(self) -> bool:
        if self.cursor.offset >= self._size():
            return False
        lines, offset = read_from(self.folder.metrics, self.cursor.offset)
        points = [p for line in lines for p in points_of(line) if self.cursor.is_new(p)]
        if points:
            self.tracker.log_metrics(points)
        with self.lock:
            moved = offset > self.cursor.offset
            self.cursor.acknowledge(points, offset)
            self._save()
        self.points += len(points)
        return moved

    def _send_artifact(self) -> bool:
        with self.lock:
            waiting = [artifact for artifact in self.cursor.artifacts if not artifact.sent]
        for artifact in waiting:
            if (path := self._uploadable(artifact)) is not None:
                self.tracker.log_artifact(path, artifact.folder)
                self.artifacts += 1
            with self.lock:
                artifact.sent = True
            if path is not None:
                self.save()
                return True
        if waiting:
            self.save()  # once for all that cannot be uploaded
        return False

    def _uploadable(self, artifact: PendingArtifact) -> Path | None:
        """The file to upload; None, and a line in `missing`, where it is none of the folder's:
        `tracker.json` may come from a stranger, and could name any file of this machine."""
        path = self.folder.path / artifact.path
        try:
            open_file(path, inside=self.folder.path).close()
            if ".." in artifact.folder.split("/") or artifact.folder.startswith("/"):
                raise ValueError(f"{artifact.folder[:60]!r} is no folder of a run")
        except (OSError, ValueError) as error:
            self.missing.append(f"{path}: {reason(error)}")
            return None
        return path

    def _save(self) -> None:
        if not self._abandoned and self.folder.path.is_dir():  # it may be moved as the run goes on
            self.cursor.save(self.folder.tracker)

    def _size(self) -> int:
        try:
            return self.folder.metrics.lstat().st_size
        except FileNotFoundError:
            return 0


def points_of(line: MetricLine) -> list[MetricPoint]:
    """The points of a line that a service can hold: the finite ones."""
    return [
        MetricPoint(key, value, line.step, line.time_ms)
        for key, value in line.metrics.items()
        if abs(value) != float("inf") and value == value
    ]


def tracker_class(tracker: Tracker) -> str:
    """What identifies a kind of tracker across processes."""
    return f"{type(tracker).__module__}:{type(tracker).__qualname__}"
