"""A tracker in memory, and the view of a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from sslkit.api import ComponentConfig, MetricPoint, RunView, Tracker
from sslkit.builtin import mlflow_store
from sslkit.runs.folder import RunFolder


class MemoryTracker(Tracker):
    """A service in this process that can be switched off."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.down = False
        self.runs = 0
        self.calls = 0
        self.points: list[MetricPoint] = []
        self.uploads: list[tuple[str, str, bytes]] = []
        self.status: str | None = None
        self.lost = False

    def start(self, run: RunView, run_id: str | None) -> str | None:
        self._check()
        if run_id is None or self.lost:
            self.lost = False
            self.runs += 1
            return f"run-{self.runs}"
        return run_id

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        self._check()
        self.points.extend(points)

    def log_artifact(self, path: Path, folder: str) -> None:
        self._check()
        self.uploads.append((path.name, folder, path.read_bytes()))

    def finish(self, status: Literal["finished", "failed", "killed"]) -> None:
        self._check()
        self.status = status

    def _check(self) -> None:
        self.calls += 1
        if self.down:
            raise ConnectionError("nobody\nlistens")


@pytest.fixture
def memory_tracker() -> MemoryTracker:
    return MemoryTracker()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "x")


@pytest.fixture
def view(folder: RunFolder) -> RunView:
    return RunView(
        run_dir=folder.path,
        run_name="simclr-digits-s0",
        params={"seed": 0, "method.loss.temperature": 0.5, "train.max_steps": None},
        tags={"sslkit.method": "simclr", "mlflow.source.git.commit": "0" * 40},
    )


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store as MLflow makes it; made once, since its migrations take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    uri = f"sqlite:///{path}"
    with mlflow_store.creation_lock(uri):
        mlflow_store.client(uri)
    return path


@pytest.fixture
def store(migrated_store: Path, tmp_path: Path) -> Path:
    """A store of the test's own, with no runs."""
    return Path(shutil.copy(migrated_store, tmp_path / "mlflow.db"))
