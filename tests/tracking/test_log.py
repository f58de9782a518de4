"""The run log against a service that comes and goes."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sslkit.api import ComponentConfig, RunView
from sslkit.errors import RankError, TrackingError
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import read_lines
from sslkit.runs.upload_state import UploadState
from sslkit.tracking.log import FeedTiming, RunLog, sync

if TYPE_CHECKING:
    from tests.tracking.conftest import MemoryTracker

FAST = FeedTiming(interval_s=0.05, retry_first_s=0.05, retry_max_s=0.1, finish_s=5.0)


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits until the background thread has done something."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def reopen(folder: RunFolder) -> RunFolder:
    """What a resumed process does."""
    folder.close()
    return RunFolder.open(folder.path, write=True)


def test_everything_arrives_in_order(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    folder.write_text("report.md", "fine")
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        assert log.connected
        for step in range(1, 21):
            log.log({"train/loss": 1 / step, "train/lr": 0.1}, step)
        log.log_system({"system/cpu_percent": 50.0})
        log.artifact(folder.report, "reports")
    assert log.run_id == "run-1"
    losses = [(p.step, p.value) for p in memory_tracker.points if p.key == "train/loss"]
    assert losses == [(step, 1 / step) for step in range(1, 21)]
    (system,) = [p for p in memory_tracker.points if p.key == "system/cpu_percent"]
    assert system.step == 20
    assert memory_tracker.uploads == [("report.md", "reports", b"fine")]
    assert memory_tracker.status == "finished"
    lines = list(read_lines(folder.metrics))
    assert len(lines) == 21
    assert abs(lines[0].time_ms / 1000 - time.time()) < 60


def test_values_that_are_not_finite_stay_in_the_file(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        log.log({"a": math.inf, "b": -math.inf, "c": math.nan, "d": 1.0}, 1)
    assert [p.key for p in memory_tracker.points] == ["d"]
    assert json.loads(folder.metrics.read_text())["metrics"]["b"] == "-Infinity"


def test_service_that_comes_and_goes(
    folder: RunFolder,
    view: RunView,
    memory_tracker: MemoryTracker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory_tracker.down = True
    with caplog.at_level(logging.INFO, "sslkit.tracking"):
        log = RunLog(folder, memory_tracker, view, timing=FAST)
        log.log({"train/loss": 1.0}, 1)
        assert not log.connected
        tries = memory_tracker.calls
        eventually(lambda: memory_tracker.calls >= tries + 3)
        assert memory_tracker.points == []
        memory_tracker.down = False
        eventually(lambda: "is back" in caplog.text)
        assert len(memory_tracker.points) == 1
        memory_tracker.down = True
        log.log({"train/loss": 0.5}, 2)
        tries = memory_tracker.calls
        eventually(lambda: memory_tracker.calls >= tries + 3)
        memory_tracker.down = False
        assert log.finish("failed")
    assert [(p.step, p.value) for p in memory_tracker.points] == [(1, 1.0), (2, 0.5)]
    assert memory_tracker.status == "failed"
    messages = [record.getMessage() for record in caplog.records]
    assert [("away" in m, "is back" in m) for m in messages] == [(True, False), (False, True)] * 2
    assert not any("\n" in message for message in messages)
    assert str(folder.path) in messages[0]


def test_sync_sends_what_was_missed(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    memory_tracker.down = True
    folder.write_text("figures/f.png", "pixels")
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        for step in range(1, 4):
            log.log({"train/loss": float(step)}, step)
        log.artifact("figures/f.png", "figures")
    assert memory_tracker.points == []
    assert not log.finish("finished")
    folder = reopen(folder)
    with pytest.raises(TrackingError, match="did not take it \\(ConnectionError: nobody listens"):
        sync(folder, memory_tracker)
    memory_tracker.down = False
    assert sync(folder, memory_tracker).points == 3
    assert memory_tracker.status == "finished"
    assert memory_tracker.uploads == [("f.png", "figures", b"pixels")]
    calls = memory_tracker.calls
    assert sync(folder, memory_tracker).points == 0
    assert memory_tracker.calls == calls


@pytest.mark.parametrize(("wrote_results", "status"), [(True, "finished"), (False, "killed")])
def test_sync_of_a_killed_run_knows_whether_it_had_ended(
    folder: RunFolder,
    view: RunView,
    memory_tracker: MemoryTracker,
    wrote_results: bool,
    status: str,
) -> None:
    """Killed between its last file and the last word to the tracker, a run is finished."""
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        log.log({"train/loss": 1.0}, 1)
    if wrote_results:
        folder.write_text("results.json", "{}")
    left = json.loads(folder.tracker.read_text())
    folder.write_json(folder.tracker, {**left, "status": None, "closed": False})
    folder = reopen(folder)
    sync(folder, memory_tracker)
    assert memory_tracker.status == status
    assert memory_tracker.uploads == ([("results.json", "", b"{}")] if wrote_results else [])


def test_sync_needs_a_log_and_the_lock(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    with pytest.raises(TrackingError, match=r"tracker\.json: missing"):
        sync(folder, memory_tracker)
    with pytest.raises(RuntimeError, match="opened for reading"):
        sync(RunFolder(folder.path), memory_tracker)
    with pytest.raises(RuntimeError, match="opened for reading"):
        RunLog(RunFolder(folder.path), memory_tracker, view)


def test_resume_sends_no_step_twice(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    log = RunLog(folder, memory_tracker, view, timing=FAST)
    for step in range(1, 8):
        log.log({"train/loss": float(step)}, step)
        if step == 4:
            log.log({"eval/knn/top1": 0.4}, step)
    log.log_system({"system/cpu_percent": 10.0})
    log.finish("failed")
    with folder.metrics.open("a") as file:
        file.write('{"step": 8, "ti')
    folder = reopen(folder)
    folder.truncate_metrics(3)
    time.sleep(0.002)  # system metrics are told apart by the millisecond
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        log.log_system({"system/cpu_percent": 20.0})
        for step in range(4, 11):
            log.log({"train/loss": float(step)}, step)
            if step in (4, 9):
                log.log({"eval/knn/top1": step / 10}, step)
    assert log.run_id == "run-1"
    received = [(p.key, p.step, p.value) for p in memory_tracker.points]
    assert [r for r in received if r[0] == "train/loss"] == [
        ("train/loss", step, float(step)) for step in range(1, 11)
    ]
    assert [r[1:] for r in received if r[0] == "eval/knn/top1"] == [(4, 0.4), (9, 0.9)]
    assert [r[1:] for r in received if r[0] == "system/cpu_percent"] == [(7, 10.0), (3, 20.0)]
    steps = [line.step for line in read_lines(folder.metrics) if "train/loss" in line.metrics]
    assert steps == list(range(1, 11))


def test_service_that_lost_the_run_gets_it_again(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    folder.write_text("report.md", "fine")
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        log.log({"train/loss": 1.0}, 1)
        log.artifact("report.md")
    memory_tracker.points.clear()
    memory_tracker.uploads.clear()
    memory_tracker.lost = True
    folder = reopen(folder)
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        log.log({"train/loss": 0.5}, 2)
    assert log.run_id == "run-2"
    assert [p.step for p in memory_tracker.points] == [1, 2]
    assert len(memory_tracker.uploads) == 1


def test_another_tracker_starts_from_nothing(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    from sslkit.builtin.no_tracker import NoTracker

    with RunLog(folder, NoTracker(ComponentConfig()), view, timing=FAST) as log:
        log.log({"train/loss": 1.0}, 1)
    assert log.run_id is None
    folder = reopen(folder)
    assert sync(folder, memory_tracker).points == 1
    assert memory_tracker.status == "finished"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "killed")]
)
def test_exception_ends_the_run(
    folder: RunFolder,
    view: RunView,
    memory_tracker: MemoryTracker,
    error: type[BaseException],
    status: str,
) -> None:
    with pytest.raises(error), RunLog(folder, memory_tracker, view, timing=FAST):
        raise error
    assert memory_tracker.status == status


def test_logging_after_the_end_is_an_error(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    log = RunLog(folder, memory_tracker, view, timing=FAST)
    log.finish("finished")
    with pytest.raises(RuntimeError, match="finished"):
        log.log({"a": 1.0}, 1)


def test_missing_artifact_is_reported_and_blocks_nothing(
    folder: RunFolder,
    view: RunView,
    memory_tracker: MemoryTracker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RunLog(folder, memory_tracker, view, timing=FAST) as log:
        log.artifact("figures/never.png")
        log.log({"a": 1.0}, 1)
    assert "never.png: No such file or directory" in caplog.text
    assert len(memory_tracker.points) == 1


def test_slow_service_costs_the_deadline_and_no_more(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    memory_tracker.log_metrics = lambda points: time.sleep(3)  # type: ignore[method-assign]
    log = RunLog(folder, memory_tracker, view, timing=FeedTiming(interval_s=0.05, finish_s=0.3))
    began = time.perf_counter()
    for step in range(200):
        log.log({"a": 1.0}, step)
    assert time.perf_counter() - began < 1.0
    began = time.perf_counter()
    assert not log.finish("finished")
    assert time.perf_counter() - began < 1.5
    assert len(list(read_lines(folder.metrics))) == 200


def test_a_run_that_lost_a_process_waits_less_for_the_service(
    folder: RunFolder, view: RunView, memory_tracker: MemoryTracker
) -> None:
    """Both may be behind one cable, and all processes are to end within a minute."""
    answering = threading.Event()
    memory_tracker.log_metrics = lambda points: answering.wait(60)  # type: ignore[assignment, method-assign]
    timing = FeedTiming(interval_s=0.05, finish_s=60.0, lost_s=0.1)
    log = RunLog(folder, memory_tracker, view, timing=timing)
    log.log({"a": 1.0}, 1)
    log.__exit__(RankError, RankError("rank 1 was lost"), None)
    cursor = UploadState.load(folder.tracker)
    assert cursor is not None
    assert (cursor.status, cursor.closed) == ("failed", False)  # for a sync
    answering.set()
