"""What a run says of its speed is the speed of its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslkit.engine import loss_meter
from sslkit.engine.display import Silent
from sslkit.report.cost import training_clock
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.metrics_file import read_lines
from sslkit.workflows.train import start


def test_time_to_save_is_no_training(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still but for a second a step, and an hour for each checkpoint."""
    now, save, add = [0.0], Checkpoints.save, loss_meter.LossMeter.add
    monkeypatch.setattr(loss_meter.time, "perf_counter", lambda: now[0])

    def save_slowly(self: Checkpoints, step: int, state: dict[str, object]) -> Path:
        now[0] += 3600
        return save(self, step, state)

    def add_in_a_second(self: loss_meter.LossMeter, *args: object) -> None:
        now[0] += 1
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoints, "save", save_slowly)
    monkeypatch.setattr(loss_meter.LossMeter, "add", add_in_a_second)
    overrides = ["train.checkpoint_every_steps=1", "train.max_steps=6", "evaluate=[]"]
    run = start(str(tiny), [*overrides, "train.log_every_steps=2"], display=Silent()).run_dir
    lines = list(read_lines(run / "metrics.jsonl"))
    speeds = [line.metrics.get("perf/images_per_second") for line in lines]
    assert [speed for speed in speeds if speed is not None] == [16.0] * 3
    assert training_clock(lines, 16)[-1] == (6, pytest.approx(6.0))
