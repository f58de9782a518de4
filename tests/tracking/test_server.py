"""The run log against a real MLflow server that is down, comes, goes and comes back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sslkit.api import RunView
from sslkit.builtin import mlflow_store
from sslkit.builtin.mlflow_tracker import MLflowTracker
from sslkit.runs.folder import RunFolder
from sslkit.tracking.log import FeedTiming, RunLog, sync

TIMING = FeedTiming(interval_s=0.2, retry_first_s=0.3, retry_max_s=0.5, finish_s=30.0)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def server(store: Path, port: int) -> Iterator[str]:
    """`sslkit ui` on the store; killed hard at the end."""
    tracker = MLflowTracker(MLflowTracker.Config(tracking_uri=f"sqlite:///{store}"))
    with (store.parent / f"server-{time.time_ns()}.log").open("w") as log:
        process = subprocess.Popen(
            tracker.ui_command("127.0.0.1", port),
            cwd=store.parent,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, Path(log.name).read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1):  # noqa: S310
            return True
    except (urllib.error.URLError, OSError):
        return False


def steps(run_id: str | None, url: str) -> list[int]:
    history = mlflow_store.client(url).get_metric_history(run_id, "train/loss")
    return [metric.step for metric in history]


@pytest.mark.slow  # 17 seconds
def test_absent_server_costs_seconds_and_gets_everything_later(
    folder: RunFolder, view: RunView, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    tracker = MLflowTracker(MLflowTracker.Config(tracking_uri=f"http://127.0.0.1:{port}"))
    folder.write_text("report.md", "fine")
    began = time.perf_counter()
    with RunLog(folder, tracker, view, timing=TIMING) as log:
        assert not log.connected
        assert time.perf_counter() - began < 5
        for step in range(1, 101):
            log.log({"train/loss": 1.0 / step}, step)
        log.artifact(folder.report)
        with server(store, port) as url:
            wait_for(lambda: log.run_id is not None)
            assert log.finish("finished")
            assert steps(log.run_id, url) == list(range(1, 101))
            client = mlflow_store.client(url)
            assert client.get_run(log.run_id).info.status == "FINISHED"
            assert [f.path for f in client.list_artifacts(log.run_id)] == ["report.md"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert "MLflowTracker is away (ConnectionError: http://127.0.0.1:" in warnings[0]
    assert "is back" in warnings[1]


@pytest.mark.slow
def test_server_killed_midway_and_brought_back(
    folder: RunFolder, view: RunView, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    tracker = MLflowTracker(MLflowTracker.Config(tracking_uri=f"http://127.0.0.1:{port}"))
    with server(store, port) as url:
        log = RunLog(folder, tracker, view, timing=TIMING)
        assert log.connected
        for step in range(1, 51):
            log.log({"train/loss": 1.0 / step}, step)
        wait_for(lambda: len(steps(log.run_id, url)) == 50)
    for step in range(51, 101):
        log.log({"train/loss": 1.0 / step}, step)
    wait_for(lambda: "is away" in caplog.text)
    with server(store, port) as url:
        wait_for(lambda: "is back" in caplog.text)
        assert steps(log.run_id, url) == list(range(1, 101))
        log.log({"train/loss": 0.0}, 101)
        wait_for(lambda: len(steps(log.run_id, url)) == 101)
    log.log({"train/loss": 0.0}, 102)
    began = time.perf_counter()
    assert not log.finish("finished")
    assert time.perf_counter() - began < 15
    folder.close()
    with server(store, port) as url, RunFolder.open(folder.path, write=True) as again:
        assert sync(again, tracker).points == 1
        assert steps(log.run_id, url) == list(range(1, 103))
        assert mlflow_store.client(url).get_run(log.run_id).info.status == "FINISHED"


def test_server_that_takes_connections_and_never_answers(
    folder: RunFolder,
    view: RunView,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_store, "_PROBE_S", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tracker = MLflowTracker(MLflowTracker.Config(tracking_uri=uri))
        began = time.perf_counter()
        log = RunLog(folder, tracker, view, timing=TIMING)
        assert not log.connected
        assert 0.9 < time.perf_counter() - began < 4
        log.log({"train/loss": 1.0}, 1)
        assert not log.finish("finished")
        assert time.perf_counter() - began < 8
    assert "timed out" in caplog.text
