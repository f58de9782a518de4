"""What is written, and that nothing is written twice."""

from __future__ import annotations

import json
from pathlib import Path

from sslkit.api import MetricPoint, RunView

from sslkit_newname.tracker import NewName

POINTS = [MetricPoint("train/loss", 2.5, 10, 1_000), MetricPoint("train/loss", 2.25, 20, 2_000)]


def started(folder: Path) -> NewName:
    tracker = NewName(NewName.Config(folder=folder / "tracked"))
    run = RunView(folder / "run-a", "run-s0", {"seed": 0}, {"sslkit.method": "simclr"})
    assert tracker.start(run, None) == "run-a"
    return tracker


def written(folder: Path) -> list[float]:
    lines = (folder / "tracked/run-a/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["value"] for line in lines]


def test_a_run_is_written_whole(tmp_path: Path) -> None:
    tracker, report = started(tmp_path), tmp_path / "report.md"
    report.write_text("# Report")
    tracker.log_metrics(POINTS)
    tracker.log_artifact(report, "pages")
    tracker.finish("finished")
    folder = tmp_path / "tracked/run-a"
    assert written(tmp_path) == [2.5, 2.25]
    assert json.loads((folder / "run.json").read_text())["params"] == {"seed": 0}
    assert (folder / "artifacts/pages/report.md").read_text() == "# Report"
    assert (folder / "status").read_text() == "finished"


def test_what_comes_again_after_a_failure_is_written_once(tmp_path: Path) -> None:
    started(tmp_path).log_metrics(POINTS)
    again = started(tmp_path)
    again.log_metrics(POINTS)
    again.log_metrics([MetricPoint("train/loss", 2.0, 30, 3_000)])
    assert written(tmp_path) == [2.5, 2.25, 2.0]


def test_a_line_that_was_cut_is_written_again(tmp_path: Path) -> None:
    started(tmp_path).log_metrics(POINTS)
    metrics = tmp_path / "tracked/run-a/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-5])
    started(tmp_path).log_metrics(POINTS)
    assert written(tmp_path) == [2.5, 2.25]
