"""`sslkit reproduce`: equal runs are bit-equal; of others the first step and the cause are said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.report.reproduction import print_reproduction
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, encode_line, read_lines
from sslkit.workflows import reproduce as reproducing
from sslkit.workflows.reproduce import Reproduction, Rerun, find_fork_source, hold_against
from sslkit.workflows.reproduce import open_trained as open_run
from sslkit.workflows.run_difference import is_same, largest_of
from sslkit.workflows.train import start
from tests.conftest import TINY

SHORT = ("train.max_steps=6", "train.checkpoint_every_steps=2", "train.keep_checkpoints=9",
         "train.log_every_steps=1")  # fmt: skip
_HEAD = "{name: mlp, hidden_dim: 16, out_dim: 8}"
METHODS = {
    "simclr": f"{{name: simclr, head: {_HEAD}}}",
    "byol": f"{{name: byol, projector: {_HEAD}, predictor: {_HEAD}, teacher_momentum: 0.9}}",
    "moco_v2": f"{{name: moco_v2, head: {_HEAD}, queue_size: 31, teacher_momentum: 0.9}}",
}


def run(parent: Path, *overrides: str, recipe: str = TINY, **how: Any) -> Path:
    """A run in this process, of six steps; its folder."""
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / "tiny.yaml"
    path.write_text(recipe + f"runs_dir: {parent / 'runs'}\n")
    return start(str(path), [*SHORT, *overrides], display=Silent(), **how).run_dir


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    return run(tmp_path_factory.mktemp("first"))


def names(found: Reproduction) -> list[str]:
    return [change.name for change in found.changes]


# --- Two runs that are there ----------------------------------------------------------------------


def test_a_run_is_bit_equal_to_its_repetition(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = run(tmp_path, "train.loader_threads=0", "train.checkpoint_in_background=true")
    found = hold_against(first, second, None)
    assert found.bit_equal
    assert found.whole
    assert (found.until, found.findings.steps, found.changes) == (6, (1, 2, 3, 4, 5, 6), ())
    assert found.findings.numbers > 60
    assert [each.partition(":")[0] for each in found.findings.compared] == [
        "step-00000006.pt", "encoder.safetensors", "results.json",
    ]  # fmt: skip
    print_reproduction(found.to_json())
    assert capsys.readouterr().out.startswith("bit-equal to the end: compared were ")


@pytest.mark.slow  # 2 seconds
def test_the_cause_is_the_seed(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hold_against(first, run(tmp_path, "seed=1", "train.loader_threads=1"), None)
    assert not found.bit_equal
    assert found.findings.first is not None
    assert (found.findings.first.step, found.findings.first.what) == (1, "train/loss")
    assert names(found) == ["recipe.seed"]
    print_reproduction(found.to_json())
    shown = capsys.readouterr().out
    assert "differs at step 1: train/loss" in shown
    assert "6 of 6 log steps differ" in shown
    assert "the one recorded change that may be the cause: seed 0 -> 1\n" in shown


def pictures(folder: Path, brightness: int) -> None:
    """Two classes of small images, which differ in brightness alone from others of the folder."""
    for split, number in (("train", 40), ("test", 8)):
        for index in range(number):
            place = folder / split / ("a" if index % 2 else "b") / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([index, number]).integers(0, 200, (16, 16, 3))
            Image.fromarray((noise + brightness).astype(np.uint8)).save(place)


def again(command: Sequence[str]) -> int:
    """Makes the run in this process."""
    asked = json.loads(command[-1])
    start(asked["recipe"], asked["overrides"], display=Silent())
    return 0


@pytest.mark.slow  # 8 seconds
def test_the_cause_is_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same names, sizes and labels elsewhere; an equal copy is none."""
    for name, brightness in (("one", 0), ("copy", 0), ("other", 9)):
        pictures(tmp_path / name, brightness)
    runs = {
        name: run(tmp_path / f"of-{name}", recipe=TINY.replace(
            "{name: synthetic, num_train: 96, num_test: 48, size: 16}",
            f"{{name: image_folder, train: {tmp_path / name / 'train'}, "
            f"test: {tmp_path / name / 'test'}}}",
        )) for name in ("one", "copy", "other")
    }  # fmt: skip
    assert hold_against(runs["one"], runs["copy"], None).bit_equal
    found = hold_against(runs["one"], runs["other"], None)
    assert (found.bit_equal, names(found)) == (False, ["data.test", "data.train"])
    print_reproduction(found.to_json())
    assert "training data, by its fingerprint " in capsys.readouterr().out

    # The same folder with fewer images, which make three steps where there were six.
    first, _ = open_run(runs["one"])
    monkeypatch.setattr(reproducing, "run_processes", lambda command, *_: again(command))
    pictures(tmp_path / "one", 50)
    for path in sorted((tmp_path / "one" / "train").rglob("*.png"))[:20]:
        path.unlink()
    found = reproducing.reproduce(first.path, Rerun(out=tmp_path / "again"), Silent())
    assert (found.bit_equal, found.until, found.whole) == (False, 3, False)
    assert names(found) == ["data.test", "data.train"]


@pytest.mark.slow  # 5 seconds
def test_a_run_of_another_recipe_differs_by_its_fields(first: Path, tmp_path: Path) -> None:
    found = hold_against(first, run(tmp_path, "optimizer.lr=2e-3", "train.parallel=fsdp"), None)
    assert names(found) == ["recipe.optimizer.lr", "recipe.train.parallel"]
    assert found.findings.first is not None
    assert found.findings.first.what == "train/lr"  # the loss before the first step is the same


@pytest.mark.slow  # 7 seconds
def test_a_resumed_run_is_bit_equal_to_one_in_one_go(first: Path, tmp_path: Path) -> None:
    """Between two log steps, at step 4."""
    every_third = "train.log_every_steps=3"
    straight = run(tmp_path / "straight", every_third)
    cut = run(tmp_path / "cut", every_third)
    folder = RunFolder(cut)
    folder.results.unlink()
    (folder.checkpoints / "step-00000006.pt").unlink()
    start(None, resume=str(cut), display=Silent())
    assert [line.step for line in read_lines(folder.metrics)][:1] == [3]
    found = hold_against(cut, straight, None)
    assert (found.bit_equal, found.whole, found.changes) == (True, True, ())


@pytest.mark.slow  # 2 seconds
def test_what_changed_at_a_resume_is_named(first: Path, tmp_path: Path) -> None:
    second = run(tmp_path)
    folder = RunFolder(second)
    environment = json.loads(folder.environment.read_text())
    entry = {"step": 4, "changed": {"torch.num_threads": [1, 3]}}
    folder.environment.write_text(json.dumps({**environment, "history": [entry]}))
    found = hold_against(second, first, None)
    assert found.bit_equal
    assert [(each.name, each.at_step, each.second) for each in found.changes] == [
        ("torch.num_threads", 4, 3)
    ]


@pytest.mark.slow  # 10 seconds
@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"packages": {"torch": "1.0"}}, "packages.torch"),
        ({"plugins": {"sslkit": "0.0"}}, "plugins.sslkit"),
        ({"code": {"sslkit": "beef"}}, "code.sslkit"),
        ({"hardware": {"cpu": "abacus"}}, "hardware.cpu"),
        ({"python": "2.7"}, "python"),
        ({"processes": 2}, "processes"),
        ({"variables": {"MKL_NUM_THREADS": "5"}}, "variables.MKL_NUM_THREADS"),
        ({"variables": {"NVIDIA_TF32_OVERRIDE": "0"}}, "variables.NVIDIA_TF32_OVERRIDE"),
        ({"torch": {"cpu_capability": "AVX9"}}, "torch.cpu_capability"),
        ({"packages": {"mlflow": "0.1"}}, None),
        ({"hardware": {"host": "elsewhere", "memory_mb": 1, "cpu_threads_usable": 99}}, None),
        ({"variables": {"CUDA_VISIBLE_DEVICES": ""}, "launch": "x", "command": ["x"]}, None),
        ({"git": {"commit": "beef", "dirty": True, "root": "x"}, "platform": "OS/2"}, None),
    ],
)
def test_what_may_change_bits_is_named_and_nothing_else(
    first: Path, tmp_path: Path, changed: dict[str, Any], name: str | None
) -> None:
    second = tmp_path / first.name
    subprocess.run(["cp", "-r", first, second], check=True)
    environment = json.loads(RunFolder(second).environment.read_text())
    for key, value in changed.items():
        environment[key] = {**environment[key], **value} if (
            isinstance(value, dict) and environment[key]) else value  # fmt: skip
    RunFolder(second).environment.write_text(json.dumps(environment))
    found = hold_against(first, second, None)
    assert found.bit_equal
    assert names(found) == ([] if name is None else [name])


# --- What is found --------------------------------------------------------------------------------


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> RunFolder:
    """The first run, to be changed."""
    path = tmp_path / first.name
    subprocess.run(["cp", "-r", first, path], check=True)
    return RunFolder(path)


def change_log(folder: RunFolder, step: int, key: str, value: float | None) -> None:
    lines = list(read_lines(folder.metrics))
    text = ""
    for line in lines:
        metrics = dict(line.metrics)
        if line.step == step and key in metrics:
            metrics.pop(key)
            metrics |= {} if value is None else {key: value}
        text += encode_line(MetricLine(line.step, line.time_ms, metrics))
    folder.metrics.write_text(text)


def test_one_bit_of_a_number_is_found(
    first: Path, copy: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    [before] = [line.metrics["train/loss"] for line in read_lines(copy.metrics)
                if line.step == 4 and "train/loss" in line.metrics]  # fmt: skip
    after = float(np.nextafter(before, 9.0))
    change_log(copy, 4, "train/loss", after)
    found = hold_against(first, copy.path, None)
    [difference] = found.findings.differences
    assert (difference.step, difference.first, difference.second) == (4, before, after)
    assert difference.largest == after - before
    assert found.findings.differing_steps == 1
    print_reproduction(found.to_json())
    shown = capsys.readouterr().out
    assert f"differs at step 4 (equal up to step 3): train/loss {before!r} -> {after!r}" in shown
    assert "(by 4.44e-16, 1." in shown
    assert "nothing that is recorded changed: a component is no function of its recipe" in shown


def test_threads_are_named_as_the_cause(
    first: Path, copy: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    change_log(copy, 3, "train/loss", 1.0)
    environment = json.loads(copy.environment.read_text())
    environment["torch"]["num_threads"] = 2
    copy.environment.write_text(json.dumps(environment))
    found = hold_against(first, copy.path, None).to_json()
    del found["changes"][1:]  # MKL has as many threads, where no variable says
    print_reproduction(found)
    assert capsys.readouterr().out.splitlines()[2] == (
        "the one recorded change that may be the cause: torch threads 1 -> 2 "
        "(OMP_NUM_THREADS=1 has as many)"
    )


def test_nan_is_equal_to_nan_alone(first: Path, copy: RunFolder, tmp_path: Path) -> None:
    change_log(copy, 4, "train/loss", float("nan"))
    assert hold_against(copy.path, copy.path, None).bit_equal
    found = hold_against(first, copy.path, None).to_json()
    assert found["first_difference"]["second"] == "nan"
    assert found["first_difference"]["largest"] is None
    assert found["equal_until"] == 3
    json.dumps(found, allow_nan=False)


def test_losses_over_other_steps_are_not_compared(first: Path, copy: RunFolder) -> None:
    text = copy.recipe.read_text()
    assert "log_every_steps: 1\n" in text
    copy.recipe.write_text(text.replace("log_every_steps: 1\n", "log_every_steps: 3\n"))
    with pytest.raises(RecipeError, match=r"was logged every 3 steps and .* every 1"):
        hold_against(first, copy.path, None)


def test_a_number_that_only_one_has_is_found(first: Path, copy: RunFolder) -> None:
    change_log(copy, 2, "train/grad_norm", None)
    [difference] = hold_against(first, copy.path, None).findings.differences
    assert (difference.step, difference.what, difference.second) == (2, "train/grad_norm", None)


@pytest.mark.parametrize("key", ["perf/images_per_second", "perf/peak_memory_mb"])
def test_measurements_of_the_machine_are_not_compared(
    first: Path, copy: RunFolder, key: str
) -> None:
    change_log(copy, 4, key, 1.0)
    assert hold_against(first, copy.path, None).bit_equal


def test_what_eval_adds_to_a_run_is_no_difference(first: Path, copy: RunFolder) -> None:
    with copy.metrics.open("a") as log:
        log.write(encode_line(MetricLine(6, 1, {"eval/linear/top1": 0.5})))
    assert hold_against(first, copy.path, None).bit_equal
    assert hold_against(copy.path, first, None).bit_equal


def test_one_bit_of_a_weight_is_found(first: Path, copy: RunFolder) -> None:
    """Of a checkpoint, in a state whose log is the same."""
    from sslkit.runs.checkpoint import load

    path = Checkpoints(copy.checkpoints, 9).paths()[-1]
    state = load(path)
    name = next(name for name, value in state["method"].items() if value.ndim == 1)
    value = state["method"][name]
    value[0] = torch.nextafter(value[0], torch.tensor(9.0))
    state = {key: each for key, each in state.items() if key not in ("format", "step")}
    Checkpoints(copy.checkpoints, 9).save(6, state)
    [difference] = hold_against(first, copy.path, None).findings.differences
    assert (difference.where, difference.what) == ("step-00000006.pt", f"method.{name}")
    assert difference.largest is not None
    assert 0 < difference.largest < 1e-6


def test_a_score_with_another_interval_is_found(first: Path, copy: RunFolder) -> None:
    results = json.loads(copy.results.read_text())
    results["comparison"][0]["values"]["trained"]["low"] += 1e-12
    copy.results.write_text(json.dumps(results))
    [difference] = hold_against(first, copy.path, None).findings.differences
    assert (difference.where, difference.what) == ("results.json", "knn/top1 of trained")


def test_a_file_that_cannot_be_read_leaves_the_rest(
    first: Path, copy: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.encoder.unlink()
    newest = Checkpoints(copy.checkpoints, 9).paths()[-1]
    newest.write_bytes(newest.read_bytes()[:-9] + b"damaged!\n")
    found = hold_against(copy.path, first, None)
    assert found.bit_equal
    assert [each.partition(":")[0] for each in found.findings.compared] == ["results.json"]
    print_reproduction(found.to_json())
    shown = capsys.readouterr().out
    assert f"not compared: {newest}: not readable as a checkpoint: damaged" in shown
    assert f"not compared: {copy.encoder}: cannot be read: No such file or directory" in shown


def test_bits_are_compared_and_not_values() -> None:
    nan, zeros = torch.tensor([float("nan")]), torch.zeros(2)
    assert is_same(nan, nan.clone())
    assert not is_same(zeros, -zeros)
    assert not is_same(zeros, zeros.double())
    assert not is_same(zeros, zeros.reshape(2, 1))
    assert not is_same(zeros, None)
    assert is_same(torch.tensor(3), torch.tensor(3))
    assert is_same({"a": 1.0}, {"a": 1.0})
    assert not is_same(1, True)
    assert largest_of(zeros, zeros + 0.5) == 0.5
    assert largest_of(zeros, None) is None
    assert largest_of(torch.zeros(0), torch.zeros(0)) == 0.0


def test_a_part_of_a_run_is_compared_up_to_a_step(first: Path, copy: RunFolder) -> None:
    change_log(copy, 5, "train/loss", 1.0)
    found = hold_against(first, copy.path, 4)
    assert (found.bit_equal, found.whole, found.findings.steps) == (True, False, (1, 2, 3, 4))
    assert found.findings.compared == ("step-00000004.pt: " + found.findings.compared[0][18:],)
    assert not hold_against(first, copy.path, 5).bit_equal


def test_an_unfinished_run_is_compared_up_to_its_last_step(first: Path, copy: RunFolder) -> None:
    copy.results.unlink()
    copy.encoder.unlink()
    found = hold_against(copy.path, first, None)
    assert (found.bit_equal, found.whole, found.until) == (True, False, 6)


# --- Wrong inputs ---------------------------------------------------------------------------------


@pytest.mark.slow  # 2 seconds
def test_a_fork_begins_with_the_checkpoint_that_it_began_with(first: Path, tmp_path: Path) -> None:
    fork = run(tmp_path, fork=first / "checkpoints" / "step-00000002.pt")
    folder, environment = open_run(fork)
    assert (environment.forked_at, environment.processes, environment.threads) == (2, 1, 1)
    assert find_fork_source(folder, environment) == first / "checkpoints" / "step-00000002.pt"
    environment.values["forked_from"] = str(first)  # of a folder, the checkpoint of that step
    assert find_fork_source(folder, environment) == fork / "checkpoints" / "step-00000002.pt"
    (fork / "checkpoints" / "step-00000002.pt").unlink()
    assert find_fork_source(folder, environment) == first / "checkpoints" / "step-00000002.pt"
    environment.values["forked_at"] = 1
    with pytest.raises(RecipeError, match=r"was forked from .* at step 1, .* is not here; put it"):
        find_fork_source(folder, environment)
    environment.values["forked_from"] = "gone"
    with pytest.raises(RecipeError, match="is not here"):
        find_fork_source(folder, environment)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "method.loss.temperature=0.1"], "-o method.loss.temperature: makes another exper"),
        (["-o", "optimzer.lr=1"], "did you mean 'optimizer'"),
        (["-o", "train.log_every_steps=3"], "-o train.log_every_steps: makes another experiment"),
        (["--until", "7"], "has come to step 6; valid is 1 to 6"),
        (["--until", "0"], "valid is 1 to 6"),
        (["--nproc", "99999"], "more than this machine can run"),
        (["--with", "nowhere"], "no such run folder"),
        (["--with", "nowhere", "-o", "seed=1"], "--with makes no run"),
    ],
)
def test_a_wrong_input_ends_with_2_and_one_line(
    first: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["reproduce", str(first), *words])
    shown = capsys.readouterr()
    assert (end.value.code, shown.out, len(shown.err.splitlines())) == (2, "", 1), shown.err
    assert message in shown.err


def test_a_run_that_logged_nothing_is_refused(copy: RunFolder) -> None:
    copy.metrics.unlink()
    copy.results.unlink()
    for path in Checkpoints(copy.checkpoints, 9).paths():
        path.unlink()
    with pytest.raises(RecipeError, match="nothing was logged or saved at all"):
        hold_against(copy.path, copy.path, None)


# --- The command, with processes of its own -------------------------------------------------------


def call(*words: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))}
    environment |= {key: value for key, value in variables.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-m", "sslkit", *words], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip


def reproduce(path: Path, *words: str, code: int = 0, **variables: str | None) -> dict[str, Any]:
    """The verdict of the command, which ends with `code`."""
    out = path.parent.parent / "again"
    done = call("reproduce", str(path), "--out", str(out), "--json", *words, **variables)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_runs_of_methods_are_made_again_to_the_bit(method: str, tmp_path: Path) -> None:
    """Slow: real runs in processes of their own."""
    first = run(tmp_path, f"method={METHODS[method]}")
    found = reproduce(first)  # without OMP_NUM_THREADS: on as many threads as the first
    assert (found["bit_equal"], found["whole"], found["changes"]) == (True, True, [])
    assert found["steps"] == [1, 2, 3, 4, 5, 6]
    if method != "simclr":  # what changes is found whatever the method is
        return
    found = reproduce(first, "-o", "seed=1", "--until", "2", code=1)
    assert [change["name"] for change in found["changes"]] == ["recipe.seed"]
    assert found["first_difference"]["step"] == 1
    found = reproduce(first, "--until", "3", OMP_NUM_THREADS="2", code=1)
    assert found["changes"][0]["name"] == "torch.num_threads"
    assert found["first_difference"]["largest"] < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_is_made_again_up_to_its_last_step(tmp_path: Path) -> None:
    """Slow: real runs in processes of their own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("epochs: 3", "epochs: 900") + f"runs_dir: {tmp_path / 'runs'}\n")
    with subprocess.Popen([sys.executable, "-m", "sslkit", "run", str(path)]) as killed:
        while not (logs := list(tmp_path.glob("runs/*/checkpoints/*.pt"))):
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    [first] = (tmp_path / "runs").iterdir()
    assert logs
    found = reproduce(first)
    assert (found["bit_equal"], found["whole"]) == (True, False)
    assert found["until"] >= 6
    assert found["steps"][0] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_of_two_processes_and_forks_are_made_again(tmp_path: Path) -> None:
    """Slow: real runs in processes of their own."""
    recipe = tmp_path / "tiny.yaml"
    text = TINY.replace("test_resnet, drop_path_rate: 0.2", "test_resnet")
    recipe.write_text(text + f"runs_dir: {tmp_path / 'two' / 'runs'}\n")
    short = [word for each in SHORT for word in ("-o", each)]
    assert call("run", str(recipe), *short, "--nproc", "2").returncode == 0
    [two] = (tmp_path / "two" / "runs").iterdir()
    found = reproduce(two)
    assert (found["bit_equal"], found["changes"]) == (True, [])
    found = reproduce(two, "--nproc", "1", code=1, OMP_NUM_THREADS="1")
    assert found["changes"][0]["name"] == "processes"
    assert found["first_difference"]["largest"] < 1e-5

    state = Checkpoints(RunFolder(two).checkpoints, 9).paths()[1]
    fork = run(tmp_path / "fork", "optimizer.lr=5e-4", recipe=text, fork=state)
    found = reproduce(fork)
    assert (found["bit_equal"], found["steps"]) == (True, [5, 6])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_is_made_again_to_the_bit(tmp_path: Path) -> None:
    """Slow: compiles twice. Both in processes of their own: pytest keeps what torch logs."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY + f"runs_dir: {tmp_path / 'compiled' / 'runs'}\n")
    options = [
        *SHORT, "train.compile=true", "train.compile_augmentation=false", "train.max_steps=2",
        "evaluate=[]",
    ]  # fmt: skip
    done = call("run", str(recipe), *(word for each in options for word in ("-o", each)))
    assert done.returncode == 0, done.stderr
    [first] = (tmp_path / "compiled" / "runs").iterdir()
    found = reproduce(first)
    assert (found["bit_equal"], found["changes"]) == (True, [])
