"""A comparison in MLflow: a parent run, and the runs below it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sslkit.api import ComponentConfig
from sslkit.builtin import mlflow_store
from sslkit.builtin.mlflow_tracker import MLflowTracker
from sslkit.builtin.no_tracker import NoTracker
from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.workflows.compare import compare as orchestration
from sslkit.workflows.compare.process import Job
from sslkit.workflows.train import start


def runs_of(store: Path) -> list[Any]:
    client = mlflow_store.client(f"sqlite:///{store}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments))


@pytest.mark.slow  # 4 seconds
def test_a_group_is_found_again_and_takes_files(store: Path, tmp_path: Path) -> None:
    config = MLflowTracker.Config(tracking_uri=f"sqlite:///{store}", tags={"team": "vision"})
    fields = MLflowTracker(config).open_group("key-1", "methods")
    assert fields == MLflowTracker(config).open_group("key-1", "methods")
    assert fields["tags"] == {"team": "vision", "sslkit.comparison": "methods"}
    (parent,) = runs_of(store)
    assert (parent.info.run_id, parent.info.run_name) == (fields["parent_run_id"], "methods")
    assert parent.info.status == "RUNNING"
    report = tmp_path / "comparison.html"
    report.write_text("<p>")
    summary = tmp_path / "comparison.md"
    summary.write_text("# methods\n\n| arm | n |\n|---|---|\n| a | 3 |\n\n![curves](c.svg)\n")
    MLflowTracker(config).close_group("key-1", [report, summary])
    (parent,) = runs_of(store)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == "| arm | n |\n|---|---|\n| a | 3 |"
    client = mlflow_store.client(f"sqlite:///{store}")
    files = [found.path for found in client.list_artifacts(parent.info.run_id)]
    assert files == [report.name, summary.name]


def test_a_comparison_ends_with_its_last_run(store: Path) -> None:
    tracker = MLflowTracker(MLflowTracker.Config(tracking_uri=f"sqlite:///{store}"))
    parent = tracker.open_group("key-1", "methods")["parent_run_id"]
    client = mlflow_store.client(f"sqlite:///{store}")
    experiment = client.get_run(parent).info.experiment_id
    for end in (2_000_000_000_000, 2_000_000_005_000):
        child = client.create_run(experiment, tags={"mlflow.parentRunId": parent})
        client.set_terminated(child.info.run_id, end_time=end)
    tracker.close_group("key-1", [])
    assert client.get_run(parent).info.end_time == 2_000_000_005_000


def test_a_long_report_is_cut_at_a_line() -> None:
    line = "| arm | accuracy |\n"
    note = mlflow_store.note(line * 1000)
    assert len(note) <= mlflow_store.MAX_TAG_VALUE
    assert note.endswith(line.strip())


def test_trackers_without_groups_need_nothing() -> None:
    tracker = NoTracker(ComponentConfig())
    assert tracker.open_group("key", "name") == {}
    tracker.close_group("key", [])


@pytest.mark.slow  # 6 seconds
def test_runs_of_a_comparison_stand_below_its_parent(
    store: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(jobs: Sequence[Job], devices: object, display: object) -> dict[int, str]:
        for job in jobs:
            start(job.recipe, job.overrides, resume="auto", display=Silent())
        return {}

    monkeypatch.setattr(orchestration, "run_jobs", run)
    tracking = {"name": "mlflow", "tracking_uri": f"sqlite:///{store}", "tags": {"a": "b"}}
    words = ["--vary", "method.loss.temperature=0.1,0.5", "--out", str(tmp_path / "methods")]
    words += ["-o", f"tracking={json.dumps(tracking)}", "-o", "train.max_steps=1", "--map", "pca"]
    with pytest.raises(SystemExit) as exit_:
        main(["compare", str(tiny), *words])
    assert not exit_.value.code
    found = {run.info.run_name: run for run in runs_of(store)}
    parent = found.pop("methods")
    assert sorted(found) == ["tiny-temperature-0.1-s0", "tiny-temperature-0.5-s0"]
    for child in found.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["sslkit.comparison"] == "methods"
        assert child.data.tags["a"] == "b"
        assert child.info.status == "FINISHED"
    client = mlflow_store.client(f"sqlite:///{store}")
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"comparison.html", "comparison.md", "comparison.json"} <= files
    assert {"map_pca.svg", "neighbours.svg", "final_accuracies.svg"} <= files


@pytest.mark.slow  # 2 seconds
def test_a_store_that_is_away_stops_no_comparison(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(jobs: Sequence[Job], devices: object, display: object) -> dict[int, str]:
        (job,) = jobs
        assert not [text for text in job.overrides if text.startswith("tracking.")]
        wanted = [*job.overrides, "tracking={name: none}"]
        start(job.recipe, wanted, resume="auto", display=Silent())
        return {}

    monkeypatch.setattr(orchestration, "run_jobs", run)
    tracking = "tracking={name: mlflow, tracking_uri: 'http://127.0.0.1:9'}"
    words = ["-o", tracking, "-o", "train.max_steps=1", "--out", str(tmp_path / "away")]
    words += ["--map", "none", "--neighbours", "0"]
    with pytest.raises(SystemExit) as exit_:
        main(["compare", str(tiny), *words])
    assert not exit_.value.code
    assert "mlflow did not take the comparison (ConnectionError" in capsys.readouterr().err
    assert (tmp_path / "away" / "comparison.html").exists()
