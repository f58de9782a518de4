"""Whole runs on two ranks: who writes and speaks, what is random, and what ends them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.api import Batch, Progress
from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.builtin.simclr import SimCLR
from sslkit.builtin.sources.synthetic import SyntheticReader
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.display import Display, Silent
from sslkit.engine.loop import checked_step
from sslkit.engine.loss_meter import LossMeter, NotFiniteError
from sslkit.engine.signals import StopSignals
from sslkit.engine.training import Training
from sslkit.errors import RankError, RunFolderError, TrainingError
from sslkit.parallel.world import OneProcess, World
from sslkit.runs.endings import is_finished
from sslkit.runs.folder import RunFolder, held_by_first
from sslkit.runs.state import read_state
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start
from tests.engine.odd_numbers import CAUSES, Faults
from tests.ranks.forked import on_ranks

SHORT = ["train.max_steps=8", "train.online_probe={lr: 0.01}", "train.loader_threads=0"]
NO_EVALUATION = ["evaluate=[]", "train.loader_threads=0"]


def run(
    recipe: Path,
    world: World,
    *overrides: str,
    display: Display | None = None,
    stop: StopSignals | None = None,
) -> RunResult:
    """One rank's part of a run."""
    return start(
        str(recipe),
        overrides,
        display=display or Silent(),
        stop=stop or StopSignals(),
        world=world,
    )


def note_writes(below: Path) -> Callable[[], list[str]]:
    """Notes, from now on, what this process opens for writing, makes, renames and removes there."""
    paths: list[str] = []
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "os.rename", "os.remove", "os.truncate", "os.rmdir"):
            changed = arguments[:2]
        elif event == "open" and (arguments[2] or 0) & flags:
            changed = arguments[:1]
        else:
            return
        paths.extend(str(each) for each in changed if str(each).startswith(str(below)))

    sys.addaudithook(hear)
    return lambda: paths


# --- Who writes and speaks ------------------------------------------------------------------------


def test_only_rank_0_writes(tiny: Path) -> None:
    """A whole run makes one folder, and every file in it is opened by rank 0."""

    def work(world: World) -> tuple[RunResult, list[str]]:
        written = note_writes(tiny.parent / "runs")
        result = run(tiny, world, *SHORT, "callbacks=[{name: augmented_views}]")
        return result, written()

    (first, by_first), (second, by_second) = on_ranks(work)
    assert by_first
    assert by_second == []
    (folder,) = (tiny.parent / "runs").iterdir()
    assert first.run_dir == second.run_dir == folder
    assert first.metrics == second.metrics
    assert first.status == second.status == "finished"
    assert (first.speaks, second.speaks) == (True, False)
    assert is_finished(folder)
    assert not list(folder.glob("**/*.tmp"))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == sorted(steps)  # one writer: no line stands there twice
    assert steps.count(2) == 1


@pytest.mark.slow  # 4 seconds
def test_rank_0_alone_speaks(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Lines(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    def work(world: World) -> list[str]:
        lines = Lines()
        run(tiny, world, *SHORT, display=lines)
        return lines.lines

    first, second = on_ranks(work)
    assert "evaluating the last epoch and the baselines" in first
    assert second == []
    said = capfd.readouterr()
    assert said.out + said.err == ""  # neither torch nor gloo


@pytest.mark.slow  # 5 seconds
def test_callbacks_are_called_on_rank_0(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def on_step(self: AugmentedViews, run: Any, metrics: Any, progress: Progress) -> None:
        seen.append(progress.step)

    monkeypatch.setattr(AugmentedViews, "on_step", on_step)

    def work(world: World) -> list[int]:
        run(tiny, world, *NO_EVALUATION, "train.max_steps=4", "callbacks=[{name: augmented_views}]")
        return seen

    assert on_ranks(work) == [[2, 4], []]


def test_the_folder_is_one_and_locked_by_rank_0(tmp_path: Path) -> None:
    def work(world: World) -> tuple[Path, bool, str]:
        refused = ""
        with held_by_first(world, lambda: RunFolder.create(tmp_path, "x")) as folder:
            try:
                folder.write_text("note.txt", "")
            except RuntimeError as error:
                refused = str(error)
            return folder.path, folder.writable, refused

    (first, held, _), (second, other, refused) = on_ranks(work)
    assert first == second
    assert (held, other) == (True, False)
    assert refused == f"{first} was opened for reading, or is closed"
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_what_rank_0_cannot_do_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(world: World) -> RunFolder:
        return held_by_first(world, lambda: RunFolder.create(tmp_path / "file", "x"))

    first, second = on_ranks(work)
    assert isinstance(first, RunFolderError)
    assert (str(first), first.exit_code) == (str(second), second.exit_code)
    assert second.said


def test_labels_are_the_same_on_all_ranks() -> None:
    """Each rank has read its share: what one found unreadable is replaced on the other too."""
    from sslkit.builtin.sources.arrays import ArrayReader  # the simplest reader there is

    images = torch.zeros(6, 4, 4, 1, dtype=torch.uint8).numpy()

    def work(world: World) -> tuple[list[int], dict[int, str]]:
        reader = ArrayReader(images, torch.arange(6).numpy(), None)
        split = CachedSplit(reader, max_corrupt_fraction=0.5, seed=0, num_threads=1)
        split._mark(1 + 3 * world.rank, f"broken for rank {world.rank}")
        split._replace(1 + 3 * world.rank, 2 * world.rank)
        split.agree(world)
        assert split.labels is not None
        return split.labels.tolist(), split.corrupt

    (first, broken), (second, also_broken) = on_ranks(work)
    assert first == second == [0, 0, 2, 3, 2, 5]
    assert broken == also_broken == {1: "broken for rank 0", 4: "broken for rank 1"}


# --- What is random -------------------------------------------------------------------------------


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize("micro_batch", ["8", "null"])
def test_seeds_differ_by_rank_in_networks_and_nowhere_else(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: str
) -> None:
    drawn: dict[str, list[float]] = {}

    def noting(name: str) -> None:
        inner = getattr(SimCLR, name)

        def method(self: SimCLR, *args: Any) -> Any:
            drawn.setdefault(name, []).append(float(torch.rand(())))
            return inner(self, *args)

        monkeypatch.setattr(SimCLR, name, method)

    alike = ("objective", "before_step", "after_backward", "after_step")
    for name in ("embed", *alike):
        noting(name)

    def work(world: World) -> dict[str, list[float]]:
        overrides = "train.max_steps=3", f"train.micro_batch_size={micro_batch}"
        run(tiny, world, *NO_EVALUATION, *overrides)
        return drawn

    one, other = on_ranks(work)
    assert not set(one["embed"]) & set(other["embed"])
    assert all(one[name] == other[name] for name in alike)
    if micro_batch != "null":  # rank 0 draws what one process draws: a rank only adds its number
        work(OneProcess())
        assert drawn == one


# --- What ends a run ------------------------------------------------------------------------------


@pytest.mark.slow  # 5 seconds
@pytest.mark.parametrize(
    ("asked", "at"),
    [(0, 4), (1, 5), (0, 6), (1, 6)],
)
def test_a_stop_on_any_rank_stops_all_with_one_checkpoint(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, asked: int, at: int
) -> None:
    """At a log step, between two, at the end of an epoch."""
    overrides = [*NO_EVALUATION, "train.checkpoint_every_epochs=9"]

    def step_then_signal(t: Training, batch: Batch, *, log: bool) -> Any:
        if (t.compute.world.rank, t.progress.step + 1) == (asked, at):
            os.kill(os.getpid(), signal.SIGTERM)
        return checked_step(t, batch, log=log)

    monkeypatch.setattr("sslkit.engine.loop.checked_step", step_then_signal)

    def work(world: World) -> tuple[str, str | None]:
        with StopSignals() as stop:
            return run(tiny, world, *overrides, stop=stop).status, stop.requested

    ends = on_ranks(work)
    assert ends[asked] == ("stopped", "SIGTERM")
    assert ends[1 - asked] == ("stopped", f"SIGTERM on rank {asked}")
    (folder,) = (tiny.parent / "runs").iterdir()
    assert read_state(folder)["step"] == at
    assert len(list((folder / "checkpoints").iterdir())) == 1


@pytest.mark.slow  # 6 seconds
@pytest.mark.parametrize(
    "part",
    [
        "loss_alone",
        *CAUSES,
    ],
)
def test_a_number_that_is_not_finite_on_one_rank_ends_all(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What was so first is found, on whichever rank it is, and said once."""
    faults = Faults(monkeypatch)
    faults.at, faults.rank = 3, 1
    if part == "loss_alone":
        spoil_reported_loss(monkeypatch, faults)
    else:
        getattr(faults, part)()

    def work(world: World) -> RunResult:
        return run(tiny, world, *NO_EVALUATION, "train.checkpoint_every_steps=1")

    ends = on_ranks(work)
    assert all(isinstance(each, TrainingError | RankError) for each in ends), ends
    assert str(ends[0]) == str(ends[1])
    expected, when = CAUSES.get(part, ("SimCLR.objective makes nan from finite", "step"))
    assert re.match(rf"{when} 3: .*{expected}", str(ends[0]).replace(" on rank 1", "")), ends[0]
    assert str(ends[0]).count(" on rank 1") == 1
    assert ends[1].said
    (folder,) = (tiny.parent / "runs").iterdir()
    record = json.loads((folder / "not_finite.json").read_text())
    assert record["step"] == 3
    assert len(record["batch_indices"]) == 16
    assert max(path.name for path in (folder / "checkpoints").iterdir()) == "step-00000002.pt"


def spoil_reported_loss(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    """The loss is NaN, and its gradient is not."""
    objective = SimCLR.objective

    def spoiled(self: SimCLR, *args: Any) -> Any:
        output = objective(self, *args)
        return replace(output, loss=output.loss + float("nan")) if faults.on() else output

    monkeypatch.setattr(SimCLR, "objective", spoiled)


def test_the_meter_asks_all_ranks() -> None:
    def work(world: World) -> str:
        meter = LossMeter(world)
        for step in range(3):
            odd = step == 1 and world.rank == 1
            meter.add(torch.tensor(float("nan") if odd else 1.0), torch.tensor(1.0), 4)
        with pytest.raises(NotFiniteError) as found:
            meter.check(3)
        return found.value.symptom

    assert on_ranks(work) == [
        "the loss or the gradient of another rank is not finite",
        "the loss is nan",
    ]


@pytest.mark.slow  # 2 seconds
def test_ranks_that_see_other_data_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of another number, or as many others: the losses would be those of neither."""

    def work(world: World, *overrides: str) -> RunResult:
        return run(tiny, world, *NO_EVALUATION, *overrides)

    more = on_ranks(lambda world: work(world, f"data.num_train={96 + 16 * world.rank}"))
    said = "data: the training data is 96 images on rank 0 and 112 images on rank 1; all machines"
    assert str(more[0]).startswith(said)
    monkeypatch.setattr(
        SyntheticReader, "fingerprint", lambda self: "abc" + os.environ.get("RANK", "")
    )
    others = on_ranks(work)
    assert str(others[0]).startswith("data: the train data is abc0 on rank 0 and abc1 on rank 1;")
    assert not list((tiny.parent / "runs").iterdir())


@pytest.mark.slow  # 7 seconds
def test_rank_0_alone_asks_the_folder_how_to_go_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system the others may still see it as it was: here they see a run that is
    finished, was stopped for good, and has had the evaluation that rank 0 misses. They would go
    another way, and one of them wait for the other for ever."""
    overrides = ["train.loader_threads=0", "train.checkpoint_every_epochs=1"]

    def epoch_then_signal(t: Training, epoch: int, stop: StopSignals) -> None:
        stop._handle(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        patch.setattr("sslkit.engine.loop.evaluate_epoch", epoch_then_signal)
        stopped = run(tiny, OneProcess(), *overrides)
    assert stopped.status == "stopped"
    assert read_state(stopped.run_dir)["step"] == 6

    def stale(place: str, answer: object) -> None:
        module, name = place.rsplit(".", 1)
        ask = getattr(sys.modules[module], name)
        monkeypatch.setattr(
            place, lambda *given: answer if os.environ.get("RANK") == "1" else ask(*given)
        )

    stale("sslkit.workflows.resume.is_finished", True)
    stale("sslkit.workflows.train.why_stopped", "step 6: stopped by knn: it says so")
    stale("sslkit.workflows.execute.was_evaluated", True)

    def work(world: World) -> tuple[Path, str]:
        result = start(str(tiny), overrides, resume="auto", display=Silent(), world=world)
        return result.run_dir, result.status

    assert on_ranks(work) == [(stopped.run_dir, "finished")] * 2
    lines = (stopped.run_dir / "metrics.jsonl").read_text().splitlines()
    assert any(each["step"] == 6 and "eval/knn/top1" in each["metrics"]
               for each in map(json.loads, lines))  # fmt: skip
