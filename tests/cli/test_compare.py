"""`sslkit compare` with real runs, and what it refuses before it runs anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError, TrainingError
from sslkit.report.comparison.side_by_side import Arm
from sslkit.workflows.compare import compare as orchestration
from sslkit.workflows.compare.arm_statistics import make_comparison
from sslkit.workflows.compare.arms import (
    kept_fields,
    label_runs,
    plan_arms,
    split_values,
    variations,
)
from sslkit.workflows.compare.pictures import PictureOptions, make_pictures
from sslkit.workflows.compare.process import Job, StoppedError
from sslkit.workflows.compare.records import read_run
from sslkit.workflows.train import start
from tests.report.run_folders import make_run

VARY = ("--vary", "method.loss.temperature=0.1,0.5")
NO_PICTURES = ("--map", "none", "--neighbours", "0")
ARMS = ["tiny temperature=0.1", "tiny temperature=0.5"]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *words])
    return int(exit_.value.code or 0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes runs in this process, which is faster; lists the folders of those that were made."""
    folders: list[str] = []

    def run(jobs: Sequence[Job], devices: object, display: object) -> dict[int, str]:
        failed = {}
        for place, job in enumerate(jobs):
            try:
                result = start(job.recipe, job.overrides, resume="auto", display=Silent())
            except TrainingError as error:
                failed[place] = str(error)
                continue
            folders.append(result.run_dir.name)
            if result.status == "stopped":
                raise StoppedError
        return failed

    monkeypatch.setattr(orchestration, "run_jobs", run)
    return folders


@pytest.fixture
def compare(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Compares variations of the tiny recipe in `tmp_path / "out"`, by default without pictures;
    gives exit code and JSON."""

    def run(*words: str, inputs: Sequence[str] = (str(tiny),), out: str = "out") -> Any:
        code = call(*inputs, *NO_PICTURES, *words, "--out", str(tmp_path / out), "--json")
        printed = capsys.readouterr().out
        return code, json.loads(printed) if printed else None

    return run


def accuracies(document: Any) -> dict[tuple[str, str], Any]:
    return {(row["arm"], row["metric"]): row for row in document["accuracies"]}


def measured(document: Any) -> list[Any]:
    """The accuracies without the time that they took."""
    return [{**row, "training_seconds": None} for row in document["accuracies"]]


@pytest.mark.slow  # 24 seconds
def test_recipes_variations_and_seeds(
    compare: Callable[..., Any], made: list[str], tmp_path: Path
) -> None:
    short = ("-o", "train.epochs=1")
    code, found = compare(*VARY, *short, "--seeds", "2", "--baseline", ARMS[1])
    assert (code, found["status"], len(made)) == (0, "finished", 4)
    assert [arm["label"] for arm in found["arms"]] == ARMS
    rows = accuracies(found)
    first = rows[ARMS[0], "eval/knn/top1"]
    other = rows[ARMS[1], "eval/knn/top1"]
    differences = [first["values"][seed] - other["values"][seed] for seed in ("0", "1")]
    assert first["minus_baseline"]["mean"] == pytest.approx(sum(differences) / 2)
    assert (first["n"], first["minus_baseline"]["pairs"], other["minus_baseline"]) == (2, 2, None)
    assert {"minus_pixels", "minus_untrained"} <= first.keys()
    run = tmp_path / "out" / found["arms"][0]["runs"]["1"]
    results = json.loads((run / "results.json").read_text())
    assert first["values"]["1"] == results["trained"]["metrics"]["eval/knn/top1"]
    assert (tmp_path / "out" / "comparison.html").exists()

    # The same command makes nothing again; one more seed is added; fewer are shown.
    made.clear()
    assert compare(*VARY, *short, "--seeds", "2", "--baseline", ARMS[1])[1] == found
    assert made == []
    more = compare(*VARY, *short, "--seeds", "3")[1]
    assert len(made) == 2
    assert accuracies(more)[ARMS[0], "eval/knn/top1"]["n"] == 3
    assert accuracies(compare(*VARY, *short)[1])[ARMS[0], "eval/knn/top1"]["n"] == 1

    # Finished runs alone, and beside the recipe whose seed 0 they are, give the same numbers.
    made.clear()
    runs = [str(tmp_path / "out" / arm["runs"][seed]) for arm in found["arms"] for seed in "01"]
    alone = compare(inputs=runs, out="alone")[1]
    assert sorted(row["mean"] for row in alone["accuracies"]) == pytest.approx(
        sorted(row["mean"] for row in found["accuracies"])
    )
    words = ("--vary", "method.loss.temperature=0.1", *short)
    mixed = compare(*words, inputs=[str(tmp_path / "tiny.yaml"), *runs], out="mixed")[1]
    assert [len(arm["runs"]) for arm in mixed["arms"]] == [2, 2]
    assert made == []


@pytest.mark.slow  # 4 seconds
def test_a_failed_run_does_not_stop_the_others(
    compare: Callable[..., Any], made: list[str]
) -> None:
    code, found = compare("--vary", "optimizer.lr=1e30,1e-3", "-o", "train.epochs=1")
    assert (code, found["status"], len(made)) == (1, "failed", 1)
    broken, whole = found["arms"]
    assert broken["runs"] == {}
    assert "the loss is" in broken["failed"]["0"]
    assert list(whole["runs"]) == ["0"]
    assert any("is left out" in note for note in found["notes"])


def test_a_stopped_comparison_says_how_to_go_on(
    compare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(jobs: object, devices: object, display: object) -> dict[int, str]:
        raise StoppedError

    monkeypatch.setattr(orchestration, "run_jobs", stop)
    assert compare() == (1, {"folder": str(tmp_path / "out"), "status": "stopped"})


@pytest.mark.slow  # 18 seconds
def test_stop_in_the_middle_of_a_run_and_go_on(
    compare: Callable[..., Any], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = ("-o", "callbacks=[{name: augmented_views}]")
    undisturbed = compare(*VARY, out="undisturbed")[1]
    made.clear()

    def stop(self: object, run: Any, metrics: object, progress: Any) -> None:
        if "temperature-0.5" in run.run_name and progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(AugmentedViews, "on_step", stop)
        assert compare(*VARY, *callback)[1]["status"] == "stopped"
    first, stopped = made
    code, found = compare(*VARY, *callback)
    assert (code, made) == (0, [first, stopped, stopped])  # resumed, and the first not repeated
    assert measured(found) == measured(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_and_go_on(
    compare: Callable[..., Any], made: list[str], tiny: Path, tmp_path: Path
) -> None:
    """A comparison that is killed in its second run goes on there, and comes to the same table."""
    undisturbed = compare(*VARY, out="undisturbed")[1]
    words = ["compare", str(tiny), *VARY, "--out", str(tmp_path / "killed"), "--json"]
    command = [sys.executable, "-m", "sslkit", *words]
    runs = tmp_path / "killed" / "runs"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 100
        while not list(runs.glob("tiny-temperature-0.5-*/checkpoints/step-*.pt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()  # until the process of the run is gone too
    first, second = sorted(runs.iterdir())
    assert (first / "results.json").exists()
    assert not (second / "results.json").exists()
    before = (first / "metrics.jsonl").stat().st_mtime_ns

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1/2] tiny temperature=0.1, seed 0: done before" in done.stderr
    assert f"going on with {second}" in done.stderr
    assert sorted(runs.iterdir()) == [first, second]
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before
    assert measured(json.loads(done.stdout)) == measured(undisturbed)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--vary", "evaluate.0.k=3,5"], "protocol knn has k 3 in one and 5 in the other"),
        (["--vary", "train.epochs=1,2"], "96 and 192 images seen (2 times); set train.epochs"),
        (["--vary", "data.num_train=96,80", "--match", "time"], "the train data differ"),
        (["--vary", "method.loss.temperature"], "--vary method.loss.temperature: expected PATH="),
        (["--vary", "method.loss.temperature=0.1,0.1"], "two arms are the same experiment"),
        (["--vary", "method.loss.temprature=0.1"], "unknown field, did you mean 'temperature'?"),
        (["--baseline", "simclr"], "--baseline simclr: is no arm; valid: 'tiny'"),
        (["--match", "steps"], "valid is epochs, time"),
        (["-o", "train.batch_size=97"], "train.batch_size: 97 is more than the 96"),
    ],
)
def test_what_is_refused_before_anything_runs(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert call(str(tiny), *words, "--out", str(tmp_path / "out")) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (str(make_run(tmp_path, "a", 0, 0.5)) for _ in range(2))
    assert call(first, again) == 2
    assert "both are seed 0 of one recipe; give one of them" in capsys.readouterr().err
    assert call(first, "--seeds", "2") == 2
    assert "change recipes, and only runs were given" in capsys.readouterr().err
    assert call(str(tmp_path)) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert call(first, "--out", again) == 2
    assert "and no comparison; choose a new or an empty folder" in capsys.readouterr().err
    assert not (Path(again) / "manifest.json").exists()
    other = str(make_run(tmp_path, "b", 0, 0.5))
    assert call(first, other, "--out", str(tmp_path / "out")) == 0
    assert call(first, "--out", str(tmp_path / "out")) == 2
    assert "holds another comparison, which differs in b" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_by_their_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    temperatures = [["method.loss.temperature=0.1"], ["method.loss.temperature=0.5"]]
    runs = [str(make_run(tmp_path, "a", 0, 0.5, overrides=each)) for each in temperatures]
    assert call(*runs, "--out", str(tmp_path / "out"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [arm["label"] for arm in found["arms"]] == ["a temperature=0.1", "a temperature=0.5"]


def test_variations_are_every_combination() -> None:
    assert variations([]) == [()]
    assert variations(["a=1,2", "b.c=3"]) == [("a=1", "b.c=3"), ("a=2", "b.c=3")]
    assert split_values("{a: 1, b: [2, 3]}, 'x,y',4") == ["{a: 1, b: [2, 3]}", "'x,y'", "4"]
    with pytest.raises(RecipeError, match="expected PATH=VALUE"):
        variations(["a=1,,2"])


def labels_of(recipe: Path, *vary: str) -> list[str]:
    return [arm.label for arm in plan_arms([str(recipe)], [], vary, 1)]


def test_names_of_arms_say_what_varies(tiny: Path) -> None:
    assert labels_of(tiny, "method.loss.name=nt_xent,info_nce") == [
        "tiny method.loss=nt_xent", "tiny method.loss=info_nce"
    ]  # fmt: skip
    assert labels_of(tiny, "evaluate.0.k=3") == ["tiny k=3"]
    losses = "method.loss={name: info_nce}"
    assert labels_of(tiny, losses) == ["tiny loss={name: info_nce}"]
    assert labels_of(tiny, "optimizer.lr=0.1", "train.online_probe.lr=0.2") == [
        "tiny optimizer.lr=0.1 train.online_probe.lr=0.2"
    ]


def test_runs_of_other_components_are_named_by_their_block(tmp_path: Path) -> None:
    runs = [
        [read_run(make_run(tmp_path, "a", 0, 0.5, overrides=[f"method.loss.name={loss}"]))]
        for loss in ("nt_xent", "info_nce")
    ]
    first, second = label_runs(runs)
    assert "method.loss=nt_xent" in first
    assert "method.loss=info_nce" in second


def test_an_arm_that_keeps_tuned_fields_is_noted(tiny: Path) -> None:
    vary = ["method.loss.name=nt_xent,info_nce"]
    tuned = plan_arms([str(tiny)], ["method.loss.temperature=0.07"], vary, 1)
    assert [arm.recipe.method.config.loss.config.temperature.start for arm in tuned] == [0.07, 0.1]
    (note,) = kept_fields(tuned)
    assert note.startswith(
        "tiny method.loss=nt_xent: method.loss has fields of the recipe (temperature=0.07); other "
    )
    # What is written, is its default: both arms begin alike. And one arm alone has no other.
    assert kept_fields(plan_arms([str(tiny)], ["method.loss={name: nt_xent}"], vary, 1)) == []
    alone = ["method.loss.name=nt_xent"]
    assert kept_fields(plan_arms([str(tiny)], ["method.loss.temperature=0.07"], alone, 1)) == []


@pytest.mark.slow  # 3 seconds
def test_a_note_reaches_the_page(
    tiny: Path, tmp_path: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = "method.loss.temperature=0.07"
    words = ("-o", tuned, "--vary", "method.loss.name=nt_xent,info_nce", "-o", "train.epochs=1")
    assert call(str(tiny), *words, *NO_PICTURES, "--out", str(tmp_path / "out"), "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("method.loss has fields of the recipe (temperature=0.07)" in each for each in notes)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (PictureOptions((), 6), "drawing neighbours"),
        (PictureOptions(("pca",), 0), "drawing maps"),
        (PictureOptions(("pca",), 6), "drawing maps and neighbours"),
        (PictureOptions((), 0), None),
    ],
)
def test_only_what_is_drawn_is_announced(
    tmp_path: Path, wanted: PictureOptions, message: str | None
) -> None:
    said: list[str] = []
    display = Silent()
    display.message = said.append  # type: ignore[method-assign]
    one = Arm("a", [read_run(make_run(tmp_path, "a", 0, 0.5))], {})
    make_pictures(make_comparison("x", [one], "a"), wanted, display)
    assert said[:1] == ([message] if message else [])
