"""How far a tracker has been fed: the content of `tracker.json` in the run folder.

`metrics.jsonl` is the queue. The cursor holds the byte up to which the service acknowledged it,
and for each metric the last point that was acknowledged: a run that is killed and resumed cuts
`metrics.jsonl` back to its checkpoint and logs those steps again, and the service, which has no
way to replace a point, must not get them twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from sslkit.api import MetricPoint, RunView
from sslkit.files import read_json, write_atomic

from .metrics_file import SYSTEM_PREFIX

Status = Literal["finished", "failed", "killed"]
_MAX_ARTIFACTS = 10_000
_Number = Annotated[int, Field(ge=0, le=2**53)]


@dataclass
class PendingArtifact:
    """A file to upload."""

    path: str
    """Relative to the run folder where it lies in it."""
    folder: str
    sent: bool = False


@dataclass
class UploadState:
    """What of a run folder a tracker has. Mutable; `save` makes it last."""

    tracker: str
    """The tracker's class: another one starts from nothing."""
    run_name: str
    params: Mapping[str, str | int | float | bool | None]
    tags: Mapping[str, str]
    run_id: str | None = None
    offset: _Number = 0
    """Bytes of `metrics.jsonl` that the service has acknowledged."""
    sent: dict[str, tuple[_Number, _Number]] = field(default_factory=dict)
    """Metric -> (step, time_ms) of the last point that the service has acknowledged."""
    artifacts: Annotated[list[PendingArtifact], Field(max_length=_MAX_ARTIFACTS)] = field(
        default_factory=list
    )
    status: Status | None = None
    """How the run ended, None while it runs (or when it was killed)."""
    closed: bool = False
    """Whether the service was told `status`."""

    def view(self, run_dir: Path) -> RunView:
        """The run as trackers see it."""
        return RunView(run_dir, self.run_name, self.params, self.tags)

    def is_new(self, point: MetricPoint) -> bool:
        """Whether the service still needs this point.

        A step that was logged before is the same step computed again. Metrics of the machine are
        told apart by their time, since a step may have several."""
        if point.key not in self.sent:
            return True
        step, time_ms = self.sent[point.key]
        if point.key.startswith(SYSTEM_PREFIX):
            return point.time_ms > time_ms
        return point.step > step

    def acknowledge(self, points: list[MetricPoint], offset: int) -> None:
        """The service has these points, and everything before `offset`."""
        for point in points:
            self.sent[point.key] = (point.step, point.time_ms)
        self.offset = offset

    def add_artifact(self, path: str, folder: str) -> None:
        """Asks for an upload, again if the file was uploaded before."""
        self.artifacts = [a for a in self.artifacts if (a.path, a.folder) != (path, folder)]
        self.artifacts.append(PendingArtifact(path, folder))

    def forget(self) -> None:
        """The service has nothing of this run."""
        self.run_id = None
        self.offset = 0
        self.sent = {}
        self.closed = False
        for artifact in self.artifacts:
            artifact.sent = False

    def save(self, path: Path) -> None:
        """Writes the cursor atomically."""
        record = {**vars(self), "artifacts": [vars(artifact) for artifact in self.artifacts]}
        record |= {"params": dict(self.params), "tags": dict(self.tags)}
        write_atomic(path, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> UploadState | None:
        """The saved cursor; None where there is none that can be read, which means that the
        service is asked what it has."""
        try:
            return _CURSOR.validate_python(read_json(path, inside=path.parent))
        except (OSError, ValueError):  # pydantic's ValidationError is a ValueError
            return None


_CURSOR: TypeAdapter[UploadState] = TypeAdapter(UploadState)
