"""The tracker `none`: the run folder is enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sslkit.api import MetricPoint, RunView, Tracker


class NoTracker(Tracker):
    """Mirrors nothing."""

    def named_store(self) -> None:
        return None

    def start(self, run: RunView, run_id: str | None) -> str | None:
        return None

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        return None

    def log_artifact(self, path: Path, folder: str) -> None:
        return None

    def finish(self, status: Literal["finished", "failed", "killed"]) -> None:
        return None
