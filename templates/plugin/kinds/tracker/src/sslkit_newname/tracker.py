"""Runs as folders of plain files.

<folder>/<run>/run.json          name, recipe and tags
<folder>/<run>/metrics.jsonl     a value in each line: key, value, step, time_ms
<folder>/<run>/artifacts/        copies of the files of the run
<folder>/<run>/status            how the run ended
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from sslkit.api import ComponentConfig, MetricPoint, RunView, Tracker


class NewName(Tracker):
    """Mirrors a run to a folder of plain files.

    All calls come from one background thread. Whatever is raised, such as by a share that is away,
    means "later": the run goes on, and the points come again after another `start`."""

    class Config(ComponentConfig):
        folder: Path = Path("tracked")
        """Where the folders of runs are made."""

    config: Config

    def start(self, run: RunView, run_id: str | None) -> str:
        # By the name of the run folder, which stays: after a resume it is found again.
        self._folder = self.config.folder / run.run_dir.name
        self._folder.mkdir(parents=True, exist_ok=True)
        described = {"name": run.run_name, "params": dict(run.params), "tags": dict(run.tags)}
        (self._folder / "run.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
        self._known = self._read_known()
        return run.run_dir.name

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        fresh = [point for point in points if (point.key, point.step) not in self._known]
        lines = "".join(json.dumps(asdict(point)) + "\n" for point in fresh)
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(lines)
        self._known |= {(point.key, point.step) for point in fresh}

    def log_artifact(self, path: Path, folder: str) -> None:
        target = self._folder / "artifacts" / folder
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)

    def finish(self, status: Literal["finished", "failed", "killed"]) -> None:
        (self._folder / "status").write_text(status, encoding="utf-8")

    @property
    def _metrics(self) -> Path:
        return self._folder / "metrics.jsonl"

    def _read_known(self) -> set[tuple[str, int]]:
        """(key, step) of what is written already. A last line that is not whole is cut off."""
        if not self._metrics.exists():
            return set()
        data = self._metrics.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self._metrics.write_bytes(whole)
        lines = map(json.loads, whole.splitlines())
        return {(line["key"], line["step"]) for line in lines}
