"""The harness sees what it should see, and a bounded part of the soak runs with `make test-all`."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sslkit.builtin.mlflow_store import chart_key
from tests.conftest import REPOSITORY
from tests.soak.attempt import InputId
from tests.soak.fence import SECRET
from tests.soak.finished import differences, store_faults
from tests.soak.fuzz import KINDS, choose
from tests.soak.moments import Moment, choose_moment
from tests.soak.nasty import change_bytes, change_tree
from tests.soak.oracle import MARKER, Needs, judge
from tests.soak.sandbox import Outcome, run

GOOD = Outcome(code=2, stdout="", stderr="error: x: no\n", cpu_s=1.0, peak_mb=10.0)


# --- The oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"code": 99}, "code 99"),
        ({"code": -11}, "code -11"),
        ({"stderr": ""}, "without a word"),
        ({"stderr": "Traceback (most recent call last):\nerror: x"}, "a traceback"),
        (
            {"code": 1, "stderr": "error: KeyError. The same command with --debug shows the"
             " traceback"},
            "fails unexpectedly",
        ),
        ({"stderr": "/a/b.py:3: UserWarning: x\nerror: y"}, "warning of Python"),
        ({"stderr": "error: \x1b[31m"}, "control characters"),
        ({"stderr": f"error: {'x' * 3000}"}, "a line of 3,007 characters"),
        ({"stderr": "error: x\n" * 500}, "prints 502 lines"),
        ({"stderr": "KeyError: 'x'"}, "no known form"),
        ({"cpu_s": 7.1}, "took 7.1 s"),
        ({"peak_mb": 1200.0}, "1,150 MB more"),
        ({"hung": True, "stopped": "took no CPU time"}, "hangs"),
        ({"trespasses": ["writes /etc/passwd"]}, "writes /etc/passwd"),
    ],
)  # fmt: skip
def test_each_fault_is_told(change: dict[str, object], expected: str, tmp_path: Path) -> None:
    needs = Needs(cpu_s=2.0, peak_mb=50.0)
    assert judge(GOOD, needs, tmp_path) == []
    (fault, *_) = judge(replace(GOOD, **change), needs, tmp_path)  # type: ignore[arg-type]
    assert expected in fault


@pytest.mark.parametrize("name", [MARKER, "traceback.txt"])
def test_files_that_inputs_leave_are_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "work" / "run").mkdir(parents=True)
    (tmp_path / "work" / "run" / name).touch()
    assert len(judge(GOOD, Needs(), tmp_path)) == 1


# --- The sandbox ----------------------------------------------------------------------------------


def _write_outside(arguments: list[str]) -> None:
    Path(arguments[0]).write_text("x")


def _through_a_link(arguments: list[str]) -> None:
    Path("link").symlink_to(arguments[0])
    with Path("link").open("a"):
        pass


def _connect(arguments: list[str]) -> None:
    with suppress(OSError), socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def _start_program(arguments: list[str]) -> None:
    subprocess.run(["true"], check=True)


def _read_secret(arguments: list[str]) -> None:
    Path(arguments[0]).parent.joinpath(SECRET).read_text()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (_write_outside, "writes"), (_through_a_link, "writes"), (_connect, "socket.connect"),
        (_start_program, "starts true"), (_read_secret, "reads"),
    ],
)  # fmt: skip
def test_the_fence_sees(tmp_path: Path, call: Callable[[list[str]], None], expected: str) -> None:
    (tmp_path / "inside" / "work").mkdir(parents=True)
    (tmp_path / SECRET).write_text("x")
    outcome = run(tmp_path / "inside", [str(tmp_path / "outside")], call)
    assert outcome.code == 0
    assert any(found.startswith(expected) for found in outcome.trespasses)


def test_a_command_that_minds_its_own_folder_is_no_trespasser(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()

    def call(arguments: list[str]) -> None:
        Path("a").write_text("x")
        Path("a").rename("b")
        print(Path("b").read_text())
        sys.exit(2)

    outcome = run(tmp_path, [], call)
    assert (outcome.code, outcome.stdout, outcome.trespasses) == (2, "x\n", [])


def test_memory_and_time_are_measured(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()

    def call(arguments: list[str]) -> None:
        taken = bytearray(os.urandom(1 << 20) * 200)
        assert sum(taken[:: 1 << 4]) > 0

    outcome = run(tmp_path, [], call)
    assert 150.0 < outcome.peak_mb < 500.0
    assert outcome.cpu_s > 0.01


# --- Inputs ---------------------------------------------------------------------------------------


def test_an_id_makes_the_same_input_again() -> None:
    one = InputId.parse("recipes:12:345")
    tree = {"a": [1, 2, {"b": "c"}], "d": None}
    assert str(one) == "recipes:12:345"
    made = [repr(change_tree(one.generator(), tree, 3)) for _ in range(2)]
    assert made[0] == made[1]
    assert change_bytes(one.generator(), b"x" * 99) == change_bytes(one.generator(), b"x" * 99)
    others = {repr(change_tree(InputId("recipes", 12, i).generator(), tree, 3)) for i in range(40)}
    assert len(others) > 30
    assert tree == {"a": [1, 2, {"b": "c"}], "d": None}


def test_kinds_are_mixed_as_their_shares_say() -> None:
    ids = choose(3, 2000)
    assert len(set(ids)) == len(ids) == 2000
    for kind, (_, share) in KINDS.items():
        assert abs(sum(one.kind == kind for one in ids) - 20 * share) <= 10
    assert {one.kind for one in ids[:60]} == set(KINDS)
    assert {one.kind for one in choose(0, 50, ["packs"])} == {"packs"}


def test_moments_are_spread() -> None:
    generator = random.Random(0)
    moments = [choose_moment(generator, 2.0, 100) for _ in range(400)]
    assert sum(moment.signal.name == "SIGKILL" for moment in moments) > 250
    assert {moment.kind for moment in moments} == {
        f"{name} at a {when}" for name in ("SIGKILL", "SIGTERM", "SIGINT")
        for when in ("time", "file")
    }  # fmt: skip
    assert {moment.event for moment in moments} > {0, 1, 98, 99}


# --- What a finished run is held against ----------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, tracked in a store of its own."""
    from sslkit.engine.display import Silent
    from sslkit.workflows.train import start
    from tests.soak.stock import RECIPE

    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "tiny.yaml"
    recipe.write_text(f"{RECIPE}runs_dir: {folder / 'runs'}\n")
    return start(recipe, ["train.max_steps=2"], display=Silent()).run_dir


def _other_weight(run_dir: Path) -> None:
    import torch

    path = max((run_dir / "checkpoints").iterdir())
    state = torch.load(path, weights_only=True)
    name = next(iter(state["method"]))
    state["method"][name] = torch.nextafter(state["method"][name], torch.tensor(9.0))
    torch.save(state, path)


def _flipped_encoder(run_dir: Path) -> None:
    path = run_dir / "encoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _line_twice(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines]))


def _other_score(run_dir: Path) -> None:
    path = run_dir / "results.json"
    path.write_text(path.read_text().replace('"eval/knn/top1": 0', '"eval/knn/top1": 1'))


def _left_over(run_dir: Path) -> None:
    (run_dir / ".x.json.abc.tmp").touch()


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_other_weight, "other bits"), (_flipped_encoder, "encoder.safetensors has other bytes"),
        (_line_twice, "metrics.jsonl differs"), (_other_score, "other scores"),
        (_left_over, "temporary files"),
    ],
)  # fmt: skip
def test_a_run_that_ended_otherwise_is_seen(
    finished: Path, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    assert differences(copy, finished) == []
    change(copy)
    (fault,) = differences(copy, finished)
    assert expected in fault


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE runs SET status = 'KILLED'", "the store holds runs"),
        ("INSERT INTO metrics SELECT * FROM metrics LIMIT 1", "more than once"),
        ("DELETE FROM metrics WHERE step = 1", "lacks"),
        ("UPDATE metrics SET value = 7 WHERE key = 'train/loss'", "other values"),
        ("UPDATE metrics SET step = 50 WHERE key = 'train/lr'", "of no run"),
    ],
)
def test_a_store_that_differs_is_seen(
    finished: Path, tmp_path: Path, statement: str, expected: str
) -> None:
    import sqlite3
    from contextlib import closing

    store = tmp_path / "store.db"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    with closing(sqlite3.connect(store)) as database:
        database.execute("CREATE TABLE runs (run_uuid, status)")
        database.execute("CREATE TABLE metrics (key, step, value, is_nan)")
        database.execute("INSERT INTO runs VALUES ('a', 'FINISHED')")
        for line in lines:
            named = {chart_key(key): value for key, value in line["metrics"].items()}
            rows = [(key, line["step"], value, 0) for key, value in named.items()]
            database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", rows)
        database.commit()
        assert store_faults(store, finished) == []
        database.execute(statement)
        database.commit()
    assert any(expected in fault for fault in store_faults(store, finished))


def test_a_moment_says_what_it_is() -> None:
    import signal

    assert str(Moment(signal.SIGKILL, event=3)) == "SIGKILL before file change 3"
    assert str(Moment(signal.SIGTERM, cpu_s=1.25)) == "SIGTERM at 1.25 s"


# --- The bounded part -----------------------------------------------------------------------------


def _soak(tmp_path: Path, *words: str) -> dict[str, object]:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.soak", *words, "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, object] = json.loads(out.read_text())
    return found


@pytest.mark.slow  # five minutes: a run of each command first, then 200 forked processes
@pytest.mark.timeout(1200)
def test_fuzzed_inputs_do_no_harm(tmp_path: Path) -> None:
    found = _soak(tmp_path, "fuzz", "--inputs", "200", "--seed", "0")
    assert (found["inputs"], found["faults"]) == (200, 0)


@pytest.mark.slow  # five minutes: 8 kills of real runs in 4 chains
@pytest.mark.timeout(1200)
def test_killed_runs_end_as_others_do(tmp_path: Path) -> None:
    found = _soak(tmp_path, "kills", "--kills", "8", "--seed", "0")
    assert (found["kills"], found["faults"]) == (8, 0)
