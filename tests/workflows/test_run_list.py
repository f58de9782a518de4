"""`sslkit runs list` and `best`: which runs, in which state, in which order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from sslkit.errors import RecipeError, RunFolderError
from sslkit.evaluation.scores import better
from sslkit.runs.folder import RunFolder, is_held, lock_folder, unlock_folder
from sslkit.runs.metrics_file import MetricLine, encode_line
from sslkit.runs.summary import summarise
from sslkit.workflows.run_details import describe_run_folder
from sslkit.workflows.run_list import RunQuery, best_run, sort_runs
from tests.workflows.made_runs import make_run


def names(query: RunQuery) -> list[str]:
    return [run.path.name.partition("-")[0] for run in query.find()]


# --- States ---------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from sslkit.runs.folder import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_is_running_while_a_process_has_it_and_stale_once_that_is_killed(
    tmp_path: Path,
) -> None:
    path = make_run(tmp_path)
    assert summarise(path).state == "stale"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        found = summarise(path)
        assert (found.state, found.step, found.total_steps) == ("running", 4, 10)
        assert found.owner is not None
        assert found.owner.startswith(f"process {holder.pid} on ")
        command = dict(describe_run_folder(path).next_steps)
        assert command == {"save and stop": f"kill -INT {holder.pid}"}
    finally:
        holder.kill()
        holder.communicate()
    found = summarise(path)
    assert (found.state, found.why, found.owner) == ("stale", None, None)


def test_a_look_keeps_no_writer_out(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    (path / ".owner").write_text(json.dumps({"pid": 1, "host": "gone"}))
    assert not is_held(path)
    lock = lock_folder(path)
    assert is_held(path)
    unlock_folder(path, lock)
    assert not is_held(path)


def test_a_run_on_another_machine_is_running_while_it_writes(tmp_path: Path) -> None:
    """Whose lock this machine may not see."""
    path = make_run(tmp_path)
    (path / ".owner").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    assert summarise(path).state == "running"
    log = RunFolder(path).metrics
    before = log.stat().st_mtime - 3600
    os.utime(log, (before, before))
    assert summarise(path).state == "stale"


def test_how_a_run_ended_is_its_state(tmp_path: Path) -> None:
    stopped = make_run(tmp_path, "stopped", status="killed")
    failed = make_run(tmp_path, "failed", status="failed")
    RunFolder(failed).traceback.write_text("Traceback\n  File x\nValueError: no such thing\n")
    odd = make_run(tmp_path, "odd", status="failed")
    RunFolder(odd).not_finite.write_text(json.dumps({"step": 7, "first": "the loss is nan"}))
    ended = make_run(tmp_path, "ended", status="failed")
    RunFolder(ended).stopped.write_text(json.dumps({"step": 3, "stops": {"collapse": "flat"}}))
    finished = make_run(tmp_path, "finished", status="finished", results={"knn/top1": 0.5})
    assert [(s.state, s.why) for s in map(summarise, (stopped, failed, odd, ended, finished))] == [
        ("stopped", "by a signal"),
        ("failed", "ValueError: no such thing"),
        ("failed", "step 7: the loss is nan"),
        ("stopped", "step 3: stopped by collapse: flat"),
        ("finished", None),
    ]


def test_the_traceback_of_an_earlier_start_is_not_why_it_failed(tmp_path: Path) -> None:
    failed = RunFolder(make_run(tmp_path, status="failed"))
    failed.traceback.write_text("ValueError: of long ago\n")
    before = failed.environment.stat().st_mtime - 60  # a resume writes environment.json again
    os.utime(failed.traceback, (before, before))
    assert summarise(failed.path).why is None


def test_the_last_evaluation_is_found_behind_a_long_log(tmp_path: Path) -> None:
    """An hour of an epoch is 360 lines of the machine's metrics."""
    folder = RunFolder(make_run(tmp_path, results={"knn/top1": 0.25}))
    with folder.metrics.open("a") as log:
        for step in range(2_000):
            log.write(encode_line(MetricLine(10, step, {"system/memory_mb": 1.0, "train/x": 2.0})))
        log.write('{"step": 11, "time_ms"')  # torn
    assert folder.metrics.stat().st_size > 1 << 16
    found = summarise(folder.path)
    assert (found.metrics["eval/knn/top1"], found.step) == (0.25, 10)


# --- Damaged and hostile --------------------------------------------------------------------------


def link_recipe(folder: RunFolder) -> None:
    folder.recipe.unlink()
    folder.recipe.symlink_to("/etc/hostname")


def pipe_for_log(folder: RunFolder) -> None:
    folder.metrics.unlink()
    os.mkfifo(folder.metrics)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def swell(folder: RunFolder) -> None:
    huge(folder.tracker)


def swell_log(folder: RunFolder) -> None:
    """Takes no harm: of a log the end is read."""
    huge(folder.metrics)


DAMAGE: list[tuple[Callable[[RunFolder], object], str]] = [
    (link_recipe, "recipe.resolved.yaml: is a link, which a run folder may not hold"),
    (pipe_for_log, "metrics.jsonl: is no regular file"),
    (swell, "tracker.json: is larger than 2 MiB"),
    (lambda f: huge(f.environment), "environment.json: is larger than 2 MiB"),
    (lambda f: f.environment.unlink(), "environment.json: is missing"),
    (lambda f: f.environment.write_text("[" * 100_000), "environment.json: is nested too deeply"),
    (lambda f: f.tracker.write_text("[1]"), "tracker.json: holds no block of fields"),
    (lambda f: f.tracker.write_text('{"params": {"a": 1, "a": 2}}'),
     "tracker.json: has the key 'a' twice in one object"),
    (lambda f: f.results.write_text("{"), "results.json: cannot be read (is no JSON"),
    (lambda f: f.results.write_text(
        '{"comparison": [{"protocol": "knn", "metric": "top1", "values": {"trained": '
        '{"value": NaN, "draws": 1}}}]}'), "its files are not those of this version"),
    (lambda f: f.results.mkdir(), "results.json: is no regular file, which a run folder may not"),
    (lambda f: f.stopped.write_text("{}"), "stopped.json: cannot be read"),
    (lambda f: f.not_finite.write_text('{"step": -1, "first": 0}'), "not_finite.json: cannot"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[reason for _, reason in DAMAGE])
def test_a_damaged_folder_is_listed_with_the_reason(
    tmp_path: Path, damage: Callable[[RunFolder], object], reason: str
) -> None:
    whole, folder = make_run(tmp_path, "whole"), RunFolder(make_run(tmp_path, "odd"))
    damage(folder)
    tracemalloc.start()
    found = {run.path: run for run in RunQuery([tmp_path]).find()}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[whole].state == "stale"
    assert found[folder.path].state == "damaged"
    assert reason in str(found[folder.path].why)
    assert peak < 16 << 20


@pytest.mark.parametrize("content", [b"\0" * 100, b'{"step": -5, "metrics": {}}\n', b"\xff\n"])
def test_a_log_that_is_none_has_no_numbers(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(make_run(tmp_path))
    folder.metrics.write_bytes(content)
    found = summarise(folder.path)
    assert (found.state, found.step, found.metrics) == ("stale", 0, {})


def test_a_log_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    folder = RunFolder(make_run(tmp_path))
    swell_log(folder)
    tracemalloc.start()
    assert summarise(folder.path).step == 0
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_odd_values_in_sound_files_are_no_values(tmp_path: Path) -> None:
    folder = RunFolder(make_run(tmp_path))
    folder.environment.write_text('{"processes": "many", "facts": {"total_steps": 1e400}}')
    folder.tracker.write_text('{"params": {"seed": [1], "method.name": {}}, "tags": 3}')
    found = summarise(folder.path)
    assert (found.processes, found.total_steps, dict(found.recipe)) == (1, None, {})


# --- Which runs -----------------------------------------------------------------------------------


def test_runs_are_found_below_a_folder_and_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "elsewhere", "far")
    make_run(tmp_path / "here", "near")
    make_run(tmp_path / "here" / "comparisons" / "c-1" / "runs", "arm")
    renamed = make_run(tmp_path / "here", "old").rename(tmp_path / "here" / "renamed")
    (tmp_path / "here" / "linked").symlink_to(elsewhere.parent)
    (tmp_path / "here" / elsewhere.name).symlink_to(elsewhere)
    (tmp_path / "here" / "images").mkdir()
    (tmp_path / "here" / "images" / "a.png").touch()
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    found = {run.path.name.partition("-")[0]: run for run in RunQuery([tmp_path / "here"]).find()}
    assert found.keys() == {"near", "arm", "renamed", "far"}
    assert found["far"].why == "is a link, which is not followed"
    assert found["renamed"].path == renamed
    assert names(RunQuery([renamed])) == ["renamed"]


def test_a_folder_of_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.runs.search._MOST_ENTRIES", 5)
    for number in range(6):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(RunFolderError, match="holds more than 5 files"):
        RunQuery([tmp_path]).find()


def test_by_default_runs_and_comparisons_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match=r"no runs/ or comparisons/ in .*name the folder"):
        RunQuery().find()
    make_run(tmp_path / "comparisons" / "c" / "runs", "arm")
    make_run(tmp_path / "runs", "own")
    assert names(RunQuery()) == ["own", "arm"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["method.name=byol"], ["byol"]),
        (["optimizer.lr=5e-1", "seed=0"], ["simclr"]),
        (["backbone.weights=null", "train.compile=false"], ["byol", "simclr"]),
        (["train.compile=true"], []),
        (["method.name="], []),
    ],
)
def test_runs_are_chosen_by_fields_of_their_recipe(
    tmp_path: Path, conditions: list[str], expected: list[str]
) -> None:
    make_run(tmp_path, "simclr")
    make_run(tmp_path, "byol", params={"method.name": "byol", "optimizer.lr": 0.1})
    assert names(RunQuery([tmp_path], where=conditions)) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"where": ["method.nam=x"]}, "no recipe of these runs has a field 'method.nam'; did you "
                                      "mean method.name"),
        ({"where": ["method"]}, "expected FIELD=VALUE, such as method.name=byol"),
        ({"states": ["done"]}, "--state: got 'done'; valid is running, finished, stopped, failed"),
    ],
)  # fmt: skip
def test_a_condition_that_no_run_can_meet_is_refused(
    tmp_path: Path, query: dict[str, list[str]], message: str
) -> None:
    make_run(tmp_path)
    with pytest.raises(RecipeError, match=message):
        RunQuery([tmp_path], **query).find()  # type: ignore[arg-type]


def test_runs_are_chosen_by_name_and_state(tmp_path: Path) -> None:
    make_run(tmp_path, "a", results={"knn/top1": 0.5})
    make_run(tmp_path, "b")
    assert names(RunQuery([tmp_path], states=["finished"])) == ["a"]
    assert names(RunQuery([tmp_path], name="b-2026*")) == ["b"]


# --- Order, and the best --------------------------------------------------------------------------


def three(tmp_path: Path) -> RunQuery:
    for name, top1, loss in (("low", 0.2, 3.0), ("high", 0.6, 2.0), ("odd", float("nan"), 1.0)):
        path = RunFolder(make_run(tmp_path, name, results={"knn/top1": 0.0}, loss=loss))
        with path.metrics.open("a") as log:
            log.write(encode_line(MetricLine(10, 3_000, {"eval/knn/top1": top1, "own/x": top1})))
    make_run(tmp_path, "none", loss=0.5)
    return RunQuery([tmp_path])


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("age", ["none", "odd", "high", "low"]),
        ("name", ["high", "low", "none", "odd"]),
        ("step", ["odd", "high", "low", "none"]),
        ("eval/knn/top1", ["high", "low", "none", "odd"]),
        ("train/loss", ["none", "odd", "high", "low"]),
    ],
)
def test_runs_are_sorted_with_the_best_first(tmp_path: Path, by: str, expected: list[str]) -> None:
    found = sort_runs(three(tmp_path).find(), by)
    assert [run.path.name.partition("-")[0] for run in found] == expected


def test_the_best_is_the_highest_score_and_the_lowest_loss_of_finished_runs(
    tmp_path: Path,
) -> None:
    query = three(tmp_path)
    best = best_run(query, "eval/knn/top1")
    assert (best.run.path.name[:4], best.value, best.direction) == ("high", 0.6, "highest")
    assert (best.among, best.ties) == (2, 0)
    best = best_run(query, "train/loss")
    assert (best.run.path.name[:3], best.direction, best.among) == ("odd", "lowest", 3)
    assert best_run(query, "eval/knn/top1", "lowest").value == 0.2


def test_what_cannot_be_the_best_is_refused(tmp_path: Path) -> None:
    query = three(tmp_path)
    with pytest.raises(RecipeError, match=r"own/x: .* is not known; add --direction highest"):
        best_run(query, "own/x")
    with pytest.raises(
        RecipeError, match=r"'eval/knn/top5', did you mean eval/knn/top1\? valid is"
    ):
        best_run(query, "eval/knn/top5")
    for part in ("knn", "TOP1"):
        with pytest.raises(RecipeError, match="did you mean eval/knn/top1"):
            best_run(query, part)
    with pytest.raises(RecipeError, match=r"none of these runs has 'speed'; valid is eval/knn/top"):
        best_run(query, "speed")
    with pytest.raises(RunFolderError, match="no finished run among them"):
        best_run(RunQuery([tmp_path], name="none-*"), "train/loss")


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("eval/knn/top1", "highest"), ("eval/detection/ap50", "highest"),
        ("eval/few_label/top1_at_1", "highest"), ("train/loss", "lowest"),
        ("train/online_probe/loss", "lowest"), ("perf/images_per_second", "highest"),
        ("perf/evaluation_seconds", "lowest"), ("perf/peak_memory_mb", "lowest"),
        ("collapse/std", None), ("train/lr", None),
    ],
)  # fmt: skip
def test_which_value_is_better(metric: str, direction: str | None) -> None:
    assert better(metric) == direction
