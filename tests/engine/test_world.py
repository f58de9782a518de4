"""One process and several go the same way: what `World` is asked, and what only rank 0 may do."""

from __future__ import annotations

import builtins
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from two_ranks import on_ranks

from sslkit.api import Batch
from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.builtin.simclr import SimCLR
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.display import Display, Silent
from sslkit.engine.loop import checked_step
from sslkit.engine.loss_meter import LossMeter, NotFiniteError
from sslkit.engine.signals import StopSignals
from sslkit.engine.training import Training
from sslkit.errors import RecipeError, RunFolderError, TrainingError
from sslkit.parallel.world import OneProcess, World, find_world
from sslkit.runs.endings import is_finished
from sslkit.runs.folder import RunFolder, held_by_first
from sslkit.runs.state import read_state
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

SHORT = ["train.max_steps=8", "train.online_probe={lr: 0.01}"]


def run_on_ranks(
    recipe: Path, *overrides: str, display: Callable[[World], Display] | None = None
) -> list[Any]:
    return on_ranks(
        lambda world: start(
            str(recipe),
            overrides,
            display=display(world) if display else Silent(),
            stop=StopSignals(),
            world=world,
        )
    )


# --- One process ----------------------------------------------------------------------------------


def test_one_process_gives_back_what_it_is_given() -> None:
    world, rows = OneProcess(), torch.rand(3, 2)
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.collect("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.once(lambda: "a") == "a"
    assert world.any(True) is True
    assert world.any(False) is False
    assert world.sum(rows) is rows
    assert world.mean(rows) is rows
    assert world.gather(rows) is rows
    with pytest.raises(ZeroDivisionError):
        world.once(lambda: 1 // 0)


def test_one_process_imports_no_distributed_code() -> None:
    """`import sslkit.parallel.world` is cheap: neither torch nor its distributed part."""
    code = "import sys, sslkit.parallel.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Refusal of several processes -----------------------------------------------------------------

ALONE = ("WORLD_SIZE", "RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, "SLURM_NTASKS=4"),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID=1"),
        ({"WORLD_SIZE": "1", "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2"),
    ],
)
def test_several_processes_are_refused_before_anything_is_written(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=rf"^{named}: .*works in one; start it .*unset") as found:
        start(str(tiny), display=Silent())
    assert "\n" not in str(found.value)
    assert list(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"WORLD_SIZE": "", "SLURM_NTASKS": ""},
    ],
)
def test_one_process_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_world().size == 1


@pytest.mark.parametrize(
    "command",
    [
        ["run", "quickstart"],
        ["run", "--resume", "nowhere"],
        ["verify", "cpu/simclr_cifar10"],
        ["eval", "nowhere"],
        ["embed", "nowhere", "--out", "features.parquet"],
        ["pack", "{name: digits}", "--out", "digits.pack"],
        ["export", "nowhere", "--format", "timm"],
        ["compare", "quickstart", "--seeds", "2"],
    ],
)
def test_every_command_that_writes_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    from sslkit.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: WORLD_SIZE=2: torchrun has started")
    assert list(tmp_path.iterdir()) == []


# --- Two ranks ------------------------------------------------------------------------------------


def test_only_rank_0_writes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run on two ranks makes one folder, and every file in it is opened by rank 0."""
    writers: dict[str, set[str]] = {}
    root, opened = str(tiny.parent / "runs"), builtins.open

    def note(path: object) -> None:
        if str(path).startswith(root):
            writers.setdefault(threading.current_thread().name, set()).add(str(path))

    def open_noting(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if set(mode) & set("wax+"):
            note(file)
        return opened(file, mode, *args, **more)

    def path_open(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        return open_noting(self, mode, *args, **more)

    mkdir = Path.mkdir

    def mkdir_noting(self: Path, *args: Any, **more: Any) -> None:
        note(self)
        mkdir(self, *args, **more)

    monkeypatch.setattr(builtins, "open", open_noting)
    monkeypatch.setattr(Path, "open", path_open)
    monkeypatch.setattr(Path, "mkdir", mkdir_noting)
    first, second = run_on_ranks(tiny, *SHORT, "callbacks=[{name: augmented_views}]")
    assert isinstance(first, RunResult), first
    assert writers.keys() == {"rank 0", "sslkit-tracking"}  # the latter sends what rank 0 logs
    (folder,) = (tiny.parent / "runs").iterdir()
    assert first.run_dir == second.run_dir == folder
    assert first.metrics == second.metrics
    assert first.status == second.status == "finished"
    assert is_finished(folder)
    assert not list(folder.glob("**/*.tmp"))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == sorted(steps)  # one writer: no line stands there twice
    assert steps.count(2) == 1


def test_two_ranks_with_the_same_images_end_as_one_process(tiny: Path) -> None:
    """Where nothing is random in the networks, ranks that see the same batch compute the same as
    one process: same weights, to the bit. What one rank alone does (evaluating, saving) leaves no
    trace in them."""
    fixed = [*SHORT, "backbone.drop_path_rate=0.0", "train.online_probe=null"]
    alone = start(str(tiny), fixed, display=Silent()).run_dir
    first, _ = run_on_ranks(tiny, *fixed)
    assert isinstance(first, RunResult), first
    expected, found = read_state(alone)["method"], read_state(first.run_dir)["method"]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert first.metrics["eval/knn/top1"] == json_metric(alone, "eval/knn/top1")


def json_metric(folder: Path, name: str) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [line["metrics"][name] for line in lines if name in line["metrics"]][-1]  # type: ignore[no-any-return]


def test_seeds_differ_by_rank_in_networks_and_nowhere_else(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, dict[str, list[float]]] = {}

    def note(where: str) -> None:
        rank = drawn.setdefault(threading.current_thread().name, {})
        rank.setdefault(where, []).append(float(torch.rand(())))

    def noting(name: str) -> None:
        inner = getattr(SimCLR, name)

        def method(self: SimCLR, *args: Any) -> Any:
            note(name)
            return inner(self, *args)

        monkeypatch.setattr(SimCLR, name, method)

    for name in ("embed", "objective", "before_step", "after_backward", "after_step"):
        noting(name)

    for micro_batch in ("8", "null"):
        drawn.clear()
        ends = run_on_ranks(
            tiny, "train.max_steps=3", "evaluate=[]", f"train.micro_batch_size={micro_batch}"
        )
        assert all(isinstance(each, RunResult) for each in ends), ends
        one, other = drawn["rank 0"], drawn["rank 1"]
        assert not set(one["embed"]) & set(other["embed"])
        for name in ("objective", "before_step", "after_backward", "after_step"):
            assert one[name] == other[name]


def test_a_rank_s_randomness_is_that_of_one_process_on_rank_0(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In micro-batches, rank 0 draws what one process draws: ranks only add a number to the key."""
    draws: dict[str, list[float]] = {}
    embed = SimCLR.embed

    def noting(self: SimCLR, batch: Batch) -> dict[str, Tensor]:
        draws.setdefault(threading.current_thread().name, []).append(float(torch.rand(())))
        return embed(self, batch)

    monkeypatch.setattr(SimCLR, "embed", noting)
    overrides = ["train.max_steps=2", "evaluate=[]", "train.micro_batch_size=8"]
    start(str(tiny), overrides, display=Silent())
    run_on_ranks(tiny, *overrides)
    alone, first, second = draws.values()
    assert alone == first
    assert alone != second


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("at", [2, 3, 6])
def test_a_stop_on_any_rank_stops_all(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, asked: int, at: int
) -> None:
    """At a log step, between two, at the end of an epoch: all stop there, with one checkpoint."""
    stops = [StopSignals(), StopSignals()]

    def step_then_signal(t: Training, batch: Batch, *, log: bool) -> Any:
        if (t.compute.world.rank, t.progress.step + 1) == (asked, at):
            stops[asked]._handle(signal.SIGTERM, None)
        return checked_step(t, batch, log=log)

    monkeypatch.setattr("sslkit.engine.loop.checked_step", step_then_signal)
    results = on_ranks(
        lambda world: start(
            str(tiny),
            ["train.checkpoint_every_epochs=9"],
            display=Silent(),
            stop=stops[world.rank],
            world=world,
        )
    )
    assert [getattr(each, "status", each) for each in results] == ["stopped", "stopped"]
    (folder,) = (tiny.parent / "runs").iterdir()
    assert read_state(folder)["step"] == at
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert stops[asked].requested == "SIGTERM"
    assert stops[1 - asked].requested == "a stop on another rank"
    monkeypatch.undo()
    assert start(None, [], resume=str(folder), display=Silent()).status == "finished"


def test_a_number_that_is_not_finite_on_one_rank_ends_all(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message and the record are those of the rank that has it, on both ranks."""
    objective, calls = SimCLR.objective, []

    def spoiled(self: SimCLR, *args: Any) -> Any:
        calls.append(threading.current_thread().name)
        output = objective(self, *args)
        mine = calls.count(threading.current_thread().name)
        if mine >= 3 and threading.current_thread().name != calls[0]:
            output = type(output)(output.loss * float("nan"), output.metrics, output.carry)
        return output

    monkeypatch.setattr(SimCLR, "objective", spoiled)
    ends = run_on_ranks(tiny, "evaluate=[]")
    assert all(isinstance(each, TrainingError) for each in ends), ends
    assert str(ends[0]) == str(ends[1])
    assert str(ends[0]).startswith("step 3: the loss is nan")
    (folder,) = (tiny.parent / "runs").iterdir()
    assert json.loads((folder / "not_finite.json").read_text())["step"] == 3


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


def test_what_rank_0_cannot_do_is_said_on_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(world: World) -> RunFolder:
        return held_by_first(world, lambda: RunFolder.create(tmp_path / "file", "x"))

    ends = on_ranks(work)
    assert all(isinstance(each, RunFolderError) for each in ends)
    assert str(ends[0]) == str(ends[1])


def test_the_folder_is_one_and_locked_by_rank_0(tmp_path: Path) -> None:
    def work(world: World) -> tuple[Path, bool]:
        with held_by_first(world, lambda: RunFolder.create(tmp_path, "x")) as folder:
            if not world.is_first:
                with pytest.raises(RuntimeError):
                    folder.write_text("note.txt", "")
            return folder.path, folder.writable

    (first, held), (second, other) = on_ranks(work)  # type: ignore[misc]
    assert first == second
    assert (held, other) == (True, False)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_rank_0_alone_speaks(tiny: Path) -> None:
    class Lines(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    displays = [Lines(), Lines()]
    ends = run_on_ranks(tiny, *SHORT, display=lambda world: displays[world.rank])
    assert isinstance(ends[0], RunResult), ends
    assert displays[0].lines
    assert displays[1].lines == []


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

    (first, broken), (second, also_broken) = on_ranks(work)  # type: ignore[misc]
    assert first == second == [0, 0, 2, 3, 2, 5]
    assert broken == also_broken == {1: "broken for rank 0", 4: "broken for rank 1"}


def test_callbacks_are_called_on_rank_0(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        AugmentedViews, "on_step", lambda *_: seen.append(threading.current_thread().name)
    )
    run_on_ranks(tiny, "train.max_steps=4", "evaluate=[]", "callbacks=[{name: augmented_views}]")
    assert len(seen) == 2
    assert len(set(seen)) == 1
