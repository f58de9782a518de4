"""Trackers that break one law each. The service is a folder with a file for each run, in the
working folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslkit.api import ComponentConfig, MetricPoint, RunView, Tracker


class Sound(Tracker):
    """A line of JSON for each point, once."""

    class Config(ComponentConfig):
        group: str | None = None
        """The group that the run stands in."""

    def start(self, run: RunView, run_id: str | None) -> str | None:
        self.run_id = run_id or self.new_id(run)
        self.file = Path("service").absolute() / f"{self.run_id}.jsonl"
        self.file.parent.mkdir(exist_ok=True)
        self.has = {(point.key, point.step) for point in self.stored_points()}
        self.describe(run)
        return self.run_id

    def new_id(self, run: RunView) -> str:
        return run.run_dir.name

    def describe(self, run: RunView) -> None:
        params = self.file.with_suffix(".params")
        params.write_text(json.dumps(dict(run.params)), encoding="utf-8")

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        new = [point for point in points if self.is_new(point)]
        with self.file.open("a", encoding="utf-8") as file:
            for point in new:
                file.write(json.dumps([point.key, point.value, point.step, point.time_ms]) + "\n")

    def is_new(self, point: MetricPoint) -> bool:
        return (point.key, point.step) not in self.has

    def log_artifact(self, path: Path, folder: str) -> None:
        (self.file.parent / f"{self.run_id}-{path.name}").write_bytes(path.read_bytes())

    def finish(self, status: Any) -> None:
        self.file.with_suffix(".status").write_text(status, encoding="utf-8")

    def stored_points(self) -> Sequence[MetricPoint]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [MetricPoint(*json.loads(line)) for line in lines]

    def named_store(self) -> str | None:
        return "service"

    def open_group(self, key: str, name: str) -> Mapping[str, Any]:
        return {"group": key}


class RaisesOutOfLog(Sound):
    """Refuses metrics whose names have a slash."""

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        if any("/" in point.key for point in points):
            raise ValueError("a name with a slash")


class BelongsToItsThread(Sound):
    """Opens the service where it is made, for that thread alone."""

    def __init__(self, config: Any) -> None:
        import sqlite3

        super().__init__(config)
        self.database = sqlite3.connect(":memory:")

    def finish(self, status: Any) -> None:
        self.database.execute("select 1")
        super().finish(status)


class MakesARunEachTime(Sound):
    """Opens a new run at every start."""

    def start(self, run: RunView, run_id: str | None) -> str | None:
        return super().start(run, None)

    def new_id(self, run: RunView) -> str:
        return uuid.uuid4().hex


class StoresTwice(Sound):
    """Takes whatever comes for new."""

    def is_new(self, point: MetricPoint) -> bool:
        return True


class RemembersInMemory(Sound):
    """Knows what it has sent itself, and nothing of what another process did."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.known: set[tuple[str, int]] = set()

    def is_new(self, point: MetricPoint) -> bool:
        key = point.key, point.step
        new = key not in self.known
        self.known.add(key)
        return new


class LosesStepZero(Sound):
    """Takes step 0 for none."""

    def is_new(self, point: MetricPoint) -> bool:
        return bool(point.step) and super().is_new(point)


class SwallowsFailures(Sound):
    """Says nothing where the service does not take a file, and drops what was to follow."""

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        super().log_metrics([point for point in points if point.value != 0.0])


class SetsTheTypeOfNumbers(Sound):
    """Sets what torch takes for a number without a type."""

    def start(self, run: RunView, run_id: str | None) -> str | None:
        torch.set_default_dtype(torch.float64)
        return super().start(run, run_id)


class KnowsNoKilledRun(Sound):
    """Has words for two ends of three."""

    def finish(self, status: Any) -> None:
        super().finish({"finished": "done", "failed": "error"}[status])


class TakesNoLongParams(Sound):
    """Passes on what the service refuses."""

    def describe(self, run: RunView) -> None:
        if any(len(str(value)) > 6000 for value in run.params.values()):
            raise ValueError("a param of more than 6000 characters")
        super().describe(run)


class WritesIntoTheRunFolder(Sound):
    """Keeps its log where the run is."""

    def finish(self, status: Any) -> None:
        super().finish(status)
        (self.folder / "tracker.log").write_text(status, encoding="utf-8")

    def describe(self, run: RunView) -> None:
        self.folder = run.run_dir
        super().describe(run)


class ShowsALogin(Sound):
    """Names its store with the password."""

    def named_store(self) -> str:
        return "https://me:secret@service.example/runs"


class GivesFieldsThatItHasNot(Sound):
    """Puts runs into a group by a field that its Config lacks."""

    def open_group(self, key: str, name: str) -> Mapping[str, Any]:
        return {"parent": key}
