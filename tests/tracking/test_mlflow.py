"""The MLflow tracker against a real SQLite store."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import sslkit
from sslkit.api import MetricPoint, RunFacts, RunView
from sslkit.builtin import mlflow_store
from sslkit.builtin.mlflow_tracker import MLflowTracker
from sslkit.builtin.mlflow_ui import experiment_to_show
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import read_lines
from sslkit.tracking.log import FeedTiming, RunLog, sync

FAST = FeedTiming(connect_s=60.0, interval_s=0.1, finish_s=60.0)
FACTS = RunFacts(100, 1, (8, 8), 10, 10, 10, 100)

WORKER = """
import os, sys, time
from pathlib import Path
from sslkit.builtin.mlflow_tracker import MLflowTracker
from sslkit.api import RunView
from sslkit.runs.folder import RunFolder
from sslkit.tracking.log import FeedTiming, RunLog

run_dir, uri, first, last, pause = sys.argv[1:]
folder = RunFolder.open(run_dir, write=True)
folder.truncate_metrics(int(first))
view = RunView(folder.path, "worker-s0", {"seed": 0, "pid": os.getpid()}, {})
tracker = MLflowTracker(MLflowTracker.Config(tracking_uri=uri))
log = RunLog(folder, tracker, view, timing=FeedTiming(60.0, 0.05, finish_s=60.0))
assert log.connected
print(log.run_id, flush=True)
for step in range(int(first) + 1, int(last) + 1):
    log.log({"train/loss": 1.0 / step, "train/lr": 0.5}, step)
    if step % 10 == 0:
        log.log({"eval/knn/top1": step / 1000}, step)
    time.sleep(float(pause))
assert log.finish("finished")
"""


def tracker_of(store: Path, **fields: Any) -> MLflowTracker:
    return MLflowTracker(MLflowTracker.Config(tracking_uri=f"sqlite:///{store}", **fields))


def client_of(store: Path) -> Any:
    return mlflow_store.client(f"sqlite:///{store}")


def history(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


def start_worker(folder: Path, uri: str, first: int, last: int, pause: float) -> Any:
    arguments = [str(folder), uri, str(first), str(last), str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_run_in_mlflow_is_the_run_folder(folder: RunFolder, view: RunView, store: Path) -> None:
    params = {**view.params, "data.name": "digits", "data.long": "x" * 7000}
    params |= {f"evaluate.{i}.k": i for i in range(150)}
    view = replace(view, params=params)
    folder.write_json("environment.json", {"data": {"train": "abc", "test": "d" * 50}})
    folder.write_text("figures/curve.svg", "<svg/>")
    folder.encoder.write_bytes(b"weights")
    with RunLog(folder, tracker_of(store, tags={"team": "vision"}), view, timing=FAST) as log:
        for step in (1, 2, 3):
            log.log({"train/loss": 1 / step, "acc@1": 0.5, "inf": float("inf")}, step)
        log.artifact(folder.figures / "curve.svg", "figures")
        log.artifact(folder.encoder)
    assert log.run_id is not None
    client = client_of(store)
    run = client.get_run(log.run_id)
    assert run.info.run_name == "simclr-digits-s0"
    assert run.info.status == "FINISHED"
    assert run.data.params["method.loss.temperature"] == "0.5"
    assert run.data.params["train.max_steps"] == "None"
    assert len(run.data.params["data.long"]) == 6000
    assert len(run.data.params) == len(params)
    assert run.data.tags["sslkit.method"] == "simclr"
    assert run.data.tags["mlflow.source.git.commit"] == "0" * 40
    assert run.data.tags["team"] == "vision"
    assert run.data.tags["sslkit.run_folder"] == folder.path.name
    assert set(run.data.metrics) == {"train/loss", "acc_1"}
    assert history(client, log.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [f.path for f in client.list_artifacts(log.run_id)] == ["figures"]
    downloaded = client.download_artifacts(log.run_id, "figures/curve.svg")
    assert Path(downloaded).read_text() == "<svg/>"
    assert run.info.artifact_uri.startswith((store.parent / "mlruns" / "sslkit").as_uri())
    splits = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert splits["train"].digest == "abc"
    assert splits["test"].digest == "d" * 36
    assert json.loads(splits["train"].source)["name"] == "digits"
    assert client.get_experiment(run.info.experiment_id).name == "sslkit"


def test_encoder_and_parent_where_asked(folder: RunFolder, view: RunView, store: Path) -> None:
    above = replace(view, run_dir=store.parent / "runs" / "sweep")
    parent = tracker_of(store, experiment="sweep").start(above, None)
    folder.encoder.write_bytes(b"weights")
    tracker = tracker_of(store, experiment="sweep", log_encoder=True, parent_run_id=parent)
    with RunLog(folder, tracker, view, timing=FAST) as log:
        log.artifact(folder.encoder)
    client = client_of(store)
    assert [f.path for f in client.list_artifacts(log.run_id)] == ["encoder.safetensors"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert [run.info.run_id for run in children] == [log.run_id]


def test_resume_changes_no_param_and_reopens_the_run(
    folder: RunFolder, view: RunView, store: Path
) -> None:
    tracker = tracker_of(store)
    run_id = tracker.start(view, None)
    tracker.finish("killed")
    assert client_of(store).get_run(run_id).info.status == "KILLED"
    changed = replace(
        view, params={**view.params, "seed": 1, "new": 2}, tags={"sslkit.version": "9"}
    )
    assert tracker_of(store).start(changed, run_id) == run_id
    run = client_of(store).get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params["seed"] == "0"
    assert run.data.params["new"] == "2"
    assert run.data.tags["sslkit.version"] == "9"


def test_run_whose_id_was_not_noted_is_found_again(view: RunView, store: Path) -> None:
    run_id = tracker_of(store).start(view, None)
    assert tracker_of(store).start(view, None) == run_id
    client_of(store).delete_run(run_id)
    assert tracker_of(store).start(view, run_id) != run_id


def test_batch_whose_answer_was_lost_is_not_stored_twice(view: RunView, store: Path) -> None:
    first = tracker_of(store)
    run_id = first.start(view, None)
    first.log_metrics([MetricPoint("train/loss", float(step), step, 1000) for step in range(5)])
    again = tracker_of(store)
    again.start(view, run_id)
    again.log_metrics([MetricPoint("train/loss", float(step), step, 2000) for step in range(8)])
    expected = [(step, float(step)) for step in range(8)]
    assert history(client_of(store), run_id, "train/loss") == expected


def log_steps(log: RunLog, first: int, last: int) -> None:
    """What WORKER logs."""
    for step in range(first + 1, last + 1):
        log.log({"train/loss": 1.0 / step, "train/lr": 0.5}, step)
        if step % 10 == 0:
            log.log({"eval/knn/top1": step / 1000}, step)


def test_damaged_cursor_costs_nothing(folder: RunFolder, view: RunView, store: Path) -> None:
    run_ids = []
    for first in (0, 10, 20):
        with RunLog(folder, tracker_of(store), view, timing=FAST) as log:
            log_steps(log, first, first + 20)  # ten of them again
        run_ids.append(log.run_id)
        folder.tracker.write_text("{" if first else "[]")
    assert len(set(run_ids)) == 1
    expected = [(step, 1.0 / step) for step in range(1, 41)]
    assert history(client_of(store), str(run_ids[0]), "train/loss") == expected


@pytest.mark.slow  # 9 seconds
def test_killed_and_resumed_equals_uninterrupted(
    folder: RunFolder, view: RunView, store: Path
) -> None:
    """`kill -9` of a process whose metrics are on their way; then a sync, a resume from an earlier
    step, and the same steps without any of it."""
    client = client_of(store)
    folder.close()
    worker = start_worker(folder.path, f"sqlite:///{store}", 0, 100_000, 0.005)
    run_id = worker.stdout.readline().strip()
    while not any(step >= 50 for step, _ in history(client, run_id, "train/loss")):
        assert worker.poll() is None
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()

    folder = RunFolder.open(folder.path, write=True)
    assert sync(folder, tracker_of(store)).run_id == run_id
    assert client.get_run(run_id).info.status == "KILLED"
    logged = [line.step for line in read_lines(folder.metrics) if "train/loss" in line.metrics]
    assert [step for step, _ in history(client, run_id, "train/loss")] == logged

    last = logged[-1] + 50
    folder.truncate_metrics(20)
    with RunLog(folder, tracker_of(store), view, timing=FAST) as log:
        log_steps(log, 20, last)
    assert log.run_id == run_id
    straight = RunFolder.create(folder.path.parent, "straight")
    with RunLog(straight, tracker_of(store), replace(view, run_dir=straight.path)) as log:
        log_steps(log, 0, last)
    assert log.run_id != run_id
    for key in ("train/loss", "train/lr", "eval/knn/top1"):
        assert history(client, run_id, key) == history(client, log.run_id, key)
    assert len(history(client, run_id, "train/loss")) == last
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_three_processes_create_one_fresh_store(tmp_path: Path) -> None:
    database = tmp_path / "fresh" / "mlflow.db"
    uri = f"sqlite:///{database}"
    folders = [RunFolder.create(tmp_path / "runs", f"r{i}") for i in range(3)]
    for folder in folders:
        folder.close()
    workers = [start_worker(folder.path, uri, 0, 10, 0.0) for folder in folders]
    assert [worker.wait(100) for worker in workers] == [0, 0, 0]
    for worker in workers:
        worker.stdout.close()
    client = client_of(database)
    experiments = Counter(e.name for e in client.search_experiments())
    assert experiments == {"Default": 1, "sslkit": 1}
    runs = client.search_runs([client.get_experiment_by_name("sslkit").experiment_id])
    assert len(runs) == 3
    assert all(run.data.metrics["eval/knn/top1"] == 0.01 for run in runs)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "'./mlruns' is no MLflow store; valid are sqlite:///path/to/mlflow.db"),
        ("file:///tmp/mlruns", "is no MLflow store"),
        ("sqlite://", "names no file"),
        ("htp://host:5000", "is no MLflow store"),
    ],
)
def test_wrong_store_is_refused(uri: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        MLflowTracker.Config(tracking_uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ((field, text),) = MLflowTracker.problems(MLflowTracker.Config(), FACTS)
    assert field == "tracking_uri"
    assert text.startswith("MLFLOW_TRACKING_URI: ")
    assert message in text


def test_store_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = MLflowTracker(MLflowTracker.Config())
    assert tracker.uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert MLflowTracker(MLflowTracker.Config()).uri == "http://host:5000"
    given = MLflowTracker(MLflowTracker.Config(tracking_uri="sqlite:///a.db"))
    assert given.uri == f"sqlite:///{tmp_path}/a.db"
    assert given.ui_command("127.0.0.1", 5001)[-4:] == [given.uri, "127.0.0.1", "5001", "sslkit"]
    assert not list(tmp_path.iterdir())


def test_the_ui_opens_on_the_experiment_or_on_the_newest_run(store: Path) -> None:
    client = client_of(store)
    assert experiment_to_show(client, "cifar10") is None
    old, new = client.create_experiment("old"), client.create_experiment("new")
    client.create_run(old, start_time=1000)
    client.create_run(new, start_time=2000)
    assert experiment_to_show(client, "old") == old
    assert experiment_to_show(client, "cifar10") == new
    client.delete_experiment(old)
    assert experiment_to_show(client, "old") == new
    address = mlflow_store.page("http://127.0.0.1:5000", new)
    assert address == (
        f"http://127.0.0.1:5000/#/experiments/{new}/runs?workflowType=machine_learning"
    )


@pytest.mark.parametrize(
    ("script", "source"),
    [
        ("train.py", "train.py"),
        ("-c", "-c"),
        ("", "python"),
        (str(Path(sslkit.__file__).parent / "comparison" / "worker.py"), "sslkit"),
    ],
)
def test_a_run_names_the_script_of_the_user(
    view: RunView, store: Path, monkeypatch: pytest.MonkeyPatch, script: str, source: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    run_id = tracker_of(store).start(view, None)
    assert client_of(store).get_run(run_id).data.tags["mlflow.source.name"] == source


def test_deleted_experiment_is_named(view: RunView, store: Path) -> None:
    client = client_of(store)
    client.delete_experiment(client.create_experiment("sslkit"))
    with pytest.raises(Exception, match=r"tracking\.experiment: 'sslkit' was deleted in MLflow"):
        tracker_of(store).start(view, None)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("eval/knn/top1", "eval/knn/top1"), ("acc@1", "acc_1"), ("/a//b/../c=d[0]", "a/b/c_d_0_")],
)
def test_metric_keys(key: str, expected: str, view: RunView, store: Path) -> None:
    assert mlflow_store.metric_key(key) == expected
    tracker = tracker_of(store)
    run_id = tracker.start(view, None)
    tracker.log_metrics([MetricPoint(key, 1.0, 1, 1)])
    assert history(client_of(store), run_id, expected) == [(1, 1.0)]


def test_charts_have_names_that_can_be_read(view: RunView, store: Path) -> None:
    """MLflow makes a section of all parts but the last, and calls the chart by that one."""
    parts = ["collapse/embedding_spread", "collapse/embedding_spread/z"]
    parts += ["collapse/embedding_spread/z/0", "collapse/embedding_spread/features/1"]
    keys = [*parts, "eval/knn/top1", "train/online_probe/loss", "train/loss"]
    tracker = tracker_of(store)
    run_id = tracker.start(view, None)
    tracker.log_metrics([MetricPoint(key, 1.0, 1, 1) for key in keys])
    charts: dict[str, set[str]] = {}
    for key in client_of(store).get_run(run_id).data.metrics:
        section, _, title = key.rpartition("/")
        charts.setdefault(section, set()).add(title)
    assert charts == {
        "collapse": {"embedding_spread"},
        "collapse/embedding_spread": {"z", "z 0", "features 1"},
        "eval/knn": {"top1"},
        "train": {"loss"},
        "train/online_probe": {"loss"},
    }


def test_client_is_quiet_and_impatient_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import environment_variables as mlflow

    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    mlflow_store.client("http://127.0.0.1:9")
    assert mlflow.MLFLOW_DISABLE_TELEMETRY.get() is True
    assert mlflow.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 10
    assert mlflow.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 4


def test_pages_show_scores_and_reports(folder: RunFolder, view: RunView, store: Path) -> None:
    """What MLflow's pages read: the description of a run, the kind of the experiment, and the view
    that the address names, with the scores as columns."""
    folder.write_text("report.md", "# demo\n\n| protocol | top1 |\n\n![curves](figures/c.png)\n")
    with RunLog(folder, tracker_of(store), view, timing=FAST) as log:
        log.log({"train/loss": 1.0, "perf/wait": 0.5}, 1)
        log.log({"eval/knn/top1": 0.5, "eval/knn/top1_pixels": 0.4, "eval/linear/map": 0.1}, 1)
        log.artifact(folder.report)
    client = client_of(store)
    run = client.get_run(log.run_id)
    assert run.data.tags["mlflow.note.content"] == "| protocol | top1 |"
    tags = client.get_experiment(run.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    wanted = ["eval/knn/top1", "eval/linear/map", "train/loss"]
    columns = json.loads(tags[mlflow_store.VIEW_TAG])["selectedColumns"]
    assert columns == [f"metrics.`{key}`" for key in wanted]
    address = mlflow_store.page("http://h", "1", columns=True)
    assert (
        address
        == "http://h/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=sslkit"
    )
    assert mlflow_store.VIEW_TAG.endswith(".sslkit")


def test_columns_of_earlier_runs_stay() -> None:
    first = mlflow_store.view_state(None, ["eval/knn/top1", "train/loss"])
    both = json.loads(mlflow_store.view_state(first, ["eval/linear/top1", "train/loss"]))
    assert both["selectedColumns"] == [
        "metrics.`eval/knn/top1`", "metrics.`eval/linear/top1`", "metrics.`train/loss`",
    ]  # fmt: skip
    assert mlflow_store.view_state(first, ["eval/knn/top1", "train/loss"]) == first
    for damaged in ("{", "[]", "3", '{"selectedColumns": 5}', '{"selectedColumns": null}'):
        assert json.loads(mlflow_store.view_state(damaged, [])) == {"selectedColumns": []}


def test_it_tells_what_the_store_has(store: Path, view: RunView) -> None:
    """In the order of their steps, by the keys of the store, as another process finds it."""
    first = tracker_of(store)
    run_id = first.start(view, None)
    points = [MetricPoint("train/loss", 1.0 / step, step, 1000 * step) for step in (1, 2)]
    first.log_metrics([*points, MetricPoint("collapse/embedding_spread/z/0", 0.5, 2, 2000)])
    second = tracker_of(store)
    second.start(view, run_id)
    found = second.stored_points()
    assert [point for point in found if point.key == "train/loss"] == points
    assert [(p.key, p.value) for p in found if p not in points] == [
        ("collapse/embedding_spread/z 0", 0.5)
    ]
