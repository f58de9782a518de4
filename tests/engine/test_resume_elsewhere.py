"""Runs that go on under other conditions than they began in, or that were to stay stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sslkit.engine.display import Silent
from sslkit.errors import RecipeError, TrainingError
from sslkit.experiment import trials
from sslkit.experiment.check import check
from sslkit.experiment.networks import make_method
from sslkit.experiment.resolve import resolve
from sslkit.experiment.trials import check_disk_space
from sslkit.recipe import load_recipe
from sslkit.runs.environment import code_digests
from sslkit.runs.environment_file import environment_changes, read_environment
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import read_lines
from sslkit.workflows.train import start
from tests.displays import Heard

SHORT = ["train.max_steps=1", "evaluate=[]"]
STOPS = ["evaluate=[{name: collapse, every_epochs: 1, num_pairs: 8, min_std: 0.99, policy: stop}]"]


def warnings_of(tiny: Path, overrides: Sequence[str], resume: str) -> list[str]:
    display = Heard()
    start(str(tiny), overrides, resume=resume, display=display)
    return [line for line in display.messages if "changed since" in line]


@pytest.mark.slow  # 2 seconds
def test_a_resume_warns_of_what_changed_and_records_it(tiny: Path) -> None:
    run = start(str(tiny), SHORT, display=Silent()).run_dir
    began = read_environment(run).values
    assert set(began["code"]) == {"sslkit"}
    other = {
        **began,
        "packages": {**began["packages"], "torch": "1.0", "mlflow": "0.1"},
        "torch": {**began["torch"], "num_threads": 99},
        "code": {"sslkit": "0" * 16},
        "python": "2.7",
    }
    (run / "environment.json").write_text(json.dumps(other))
    (run / "results.json").unlink()
    (line,) = warnings_of(tiny, SHORT, str(run))
    for name in ("packages.torch 1.0 -> ", "torch.num_threads 99 -> 1", "python 2.7 -> ", "code."):
        assert name in line
    assert "mlflow" not in line
    assert "from step 1 on" in line
    (entry,) = read_environment(run).values["history"]
    assert entry["step"] == 1
    assert set(entry["changed"]) == {
        "packages.torch", "torch.num_threads", "code.sslkit", "python",
    }  # fmt: skip
    assert read_environment(run).values["packages"]["torch"] == "1.0"  # what it began with stays

    (run / "results.json").unlink()
    assert warnings_of(tiny, SHORT, str(run)) == []  # nothing changed since the last time
    assert [e["changed"] for e in read_environment(run).values["history"]][1] == {}


def test_damaged_history_is_passed_over() -> None:
    now = {"python": "3.12", "torch": {"num_threads": 2}}
    for history in (None, [], {}, [1], [{"changed": 3}], [{"changed": {"python": 1}}], "x", 5):
        saved = {**now, "python": "3.11", "history": history}
        assert environment_changes(saved, now) == {"python": ["3.11", "3.12"]}


def test_code_of_a_plugin_is_told_apart_without_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = code_digests({"some-plugin": "some_plugin.method"})
    assert code_digests({"some-plugin": "some_plugin"}) == before
    (package / "method.py").write_text("x = 2\n")
    assert code_digests({"some-plugin": "some_plugin"}) != before


def test_room_of_the_own_checkpoints_counts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolve(load_recipe(tiny, SHORT))
    method = make_method(recipe, check(recipe))
    needed = 9 * sum(value.nbytes for value in method.state_dict().values())
    usage = SimpleNamespace(free=needed // 2)
    monkeypatch.setattr(trials.shutil, "disk_usage", lambda path: usage)
    folder = RunFolder.create(tmp_path, "x")
    with pytest.raises(RecipeError, match="the checkpoints need"):
        check_disk_space(recipe, folder, method)
    with (folder.checkpoints / "step-00000001.pt").open("wb") as file:
        file.truncate(needed)
    check_disk_space(recipe, folder, method)


# --- Stopped by an evaluator ----------------------------------------------------------------------


def stopped_run(tiny: Path, only_run: Any) -> Path:
    with pytest.raises(TrainingError, match="stopped by collapse"):
        start(str(tiny), STOPS, display=Silent())
    found: Path = only_run()
    return found


@pytest.mark.slow  # 3 seconds
def test_a_stopped_run_stays_stopped_until_it_is_named(tiny: Path, only_run: Any) -> None:
    """`--resume auto` is what `compare` and queues give again and again."""
    run = stopped_run(tiny, only_run)
    before = list(read_lines(run / "metrics.jsonl"))
    for _ in range(2):
        with pytest.raises(TrainingError, match="It stays stopped") as caught:
            start(str(tiny), STOPS, resume="auto", display=Silent())
        assert "\n" not in str(caught.value)
        assert "step 6: stopped by collapse: " in str(caught.value)
    assert list(read_lines(run / "metrics.jsonl")) == before
    with pytest.raises(TrainingError, match="epoch 2: stopped by collapse"):
        start(str(tiny), STOPS, resume=str(run), display=Silent())
    with pytest.raises(TrainingError, match="step 12: stopped by collapse"):
        start(str(tiny), STOPS, resume="auto", display=Silent())


@pytest.mark.slow  # 5 seconds
@pytest.mark.parametrize("moment", ["before the record", "after the record", "after the log"])
def test_a_kill_between_the_stop_and_its_record_forgets_nothing(
    moment: str, tiny: Path, only_run: Any
) -> None:
    """The folder as `kill -9` leaves it at each of the three moments: the record is written, the
    numbers are logged, the run ends."""
    run = stopped_run(tiny, only_run)
    if moment == "before the record":
        (run / "stopped.json").unlink()
    if moment != "after the log":
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if "collapse/" not in line]
        assert len(kept) == len(lines) - 1
        (run / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(TrainingError, match=r"(epoch 1|step 6): stopped by collapse"):
        start(str(tiny), STOPS, resume="auto", display=Silent())
    assert json.loads((run / "stopped.json").read_text())["step"] == 6


# --- Moved and removed ----------------------------------------------------------------------------


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize("away", ["moved", "removed"])
def test_folder_that_goes_away_ends_the_run_in_one_line(
    away: str, tiny: Path, tmp_path: Path, only_run: Any
) -> None:
    """After the first epoch, whose checkpoint goes with it; nothing is made in its place."""
    target = tmp_path / "elsewhere"

    class Moving(Silent):
        def advance(self, step: int) -> None:
            super().advance(step)
            if step == 8:
                run = only_run()
                run.rename(target) if away == "moved" else shutil.rmtree(run)

    with pytest.raises(TrainingError, match="is gone") as caught:
        start(str(tiny), ["evaluate=[]"], display=Moving())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "runs").iterdir()) == []
    if away == "moved":
        assert start(None, resume=str(target), display=Heard()).status == "finished"
        assert (target / "results.json").exists()


def test_what_a_kill_leaves_of_files_is_removed(tiny: Path) -> None:
    run = start(str(tiny), SHORT, display=Silent()).run_dir
    leftovers = [
        run / ".tracker.json.ab12cd_3.tmp", run / "figures" / ".x.svg.00000000.tmp",
        run / "checkpoints" / "saving.tmp", run / "encoder.tmp",
    ]  # fmt: skip
    others = [run / "notes.tmp", run / ".hidden", run / "figures" / ".a.tmp"]
    for path in (*leftovers, *others):
        path.write_text("x")
    RunFolder.open(run)  # readers remove nothing: a writer may be at work
    assert all(path.exists() for path in leftovers)
    RunFolder.open(run, write=True).close()
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)
