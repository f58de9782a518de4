"""Run folders that are made by hand: as a run would leave them, in milliseconds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, encode_line

COUNT = 0


def make_run(
    parent: Path,
    name: str = "tiny",
    *,
    status: str | None = None,
    results: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    checkpoints: int = 0,
    loss: float = 2.0,
) -> Path:
    """A run of 10 steps that logged at step 4, each a second after the one before. status: of its
    tracker. results: `evaluator/metric` -> value, which make it finished."""
    global COUNT  # the second, so that names are in the order of making
    COUNT += 1
    path = (
        parent / f"{name}-20261101-{COUNT // 3600:02d}{COUNT // 60 % 60:02d}{COUNT % 60:02d}-0a0b"
    )
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    folder.figures.mkdir()
    (path / ".lock").touch()
    folder.recipe.write_text("name: tiny\n")
    folder.environment.write_text(json.dumps({"processes": 1, "facts": {"total_steps": 10}}))
    known = {"name": "tiny", "seed": 0, "method.name": "simclr", "optimizer.lr": 0.5,
             "backbone.weights": None, "train.compile": False, **(params or {})}  # fmt: skip
    tracked = {"params": known, "tags": {"sslkit.recipe_hash": "ab" * 8}, "status": status}
    folder.tracker.write_text(json.dumps(tracked))
    metrics = {"train/loss": loss, "train/lr": 0.1}
    log = encode_line(MetricLine(4, 1_000, metrics))
    if results is not None:
        log += encode_line(MetricLine(10, 2_000, {f"eval/{k}": v for k, v in results.items()}))
        folder.results.write_text(json.dumps({"comparison": [
            {"protocol": key.split("/")[0], "metric": key.split("/")[1],
             "values": {"trained": {"value": value, "low": 0.1, "high": 0.9, "draws": 1,
                                    "images": 48}}}
            for key, value in results.items()
        ]}))  # fmt: skip
    folder.metrics.write_text(log)
    for step in range(1, checkpoints + 1):
        (folder.checkpoints / f"step-{step:08d}.pt").write_bytes(b"x" * 100)
    return path


def age(path: Path, seconds: float) -> None:
    """Makes a folder and what is in it look that old."""
    for each in (path, *path.iterdir()):
        then = each.lstat().st_mtime - seconds
        os.utime(each, (then, then))
