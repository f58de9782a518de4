"""Runs that are saved on some number of processes and gone on with on another, or on the same."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from sslkit.engine.display import Silent
from sslkit.engine.loop import save
from sslkit.errors import RecipeError, RunFolderError
from sslkit.parallel.world import OneProcess, World
from sslkit.runs.checkpoint import Checkpoints, load
from sslkit.runs.folder import RunFolder, held_by_first
from sslkit.workflows.execute import RunResult
from sslkit.workflows.resume import hold
from sslkit.workflows.train import start
from tests.conftest import TINY
from tests.ranks.curves import RECIPE, cases, curve, make
from tests.ranks.forked import on_ranks

# --- Another number of processes: the same curve ----------------------------------------------

STAGES = ((4, 4), (2, 9), (1, 11))
"""Processes, and the step at which they stop: in the middle of an epoch of 6 steps."""
CASES = (
    "moco_v2-batch-parts",  # a teacher and a queue
    # A queue, and weights that the objective alone uses; a quarter of a minute of CPU time.
    pytest.param("prototypes-batch-parts", marks=pytest.mark.slow),
    pytest.param("byol-batch-parts", marks=pytest.mark.slow),  # half a minute of CPU time
    pytest.param("simclr-layer-whole", marks=pytest.mark.slow),  # as long
)


def overrides_of(case: str) -> tuple[str, list[str]]:
    """Method and overrides."""
    return next((method, given) for name, method, given in cases() if name == case)


def stage(world: World, run: Path, case: str, until: int) -> dict[str, Any]:
    """Goes on with a run from its newest checkpoint, and leaves one."""
    method, overrides = overrides_of(case)
    t = make(RunFolder(run), method, overrides, world)
    state, _ = t.output.checkpoints.load_newest(world)
    if state is not None:
        t.load_state_dict(state)
    found = curve(t, until)
    save(t)
    return found


def begun(folder: Path) -> Path:
    """A folder for checkpoints, beside the recipe."""
    (folder / "ranks.yaml").write_text(RECIPE)
    (folder / "run").mkdir()
    return folder / "run"


def results(ends: list[Any]) -> list[Any]:
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


@cache
def trained(case: str, stages: tuple[tuple[int, int], ...]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The losses of all stages, and the state that the last one saved."""
    with TemporaryDirectory() as folder:
        run, losses = begun(Path(folder)), []
        for size, until in stages:
            ends = results(on_ranks(lambda w, u=until: stage(w, run, case, u), size))
            losses.append(ends[0]["losses"])
        return torch.cat(losses), load(Checkpoints(run / "checkpoints", 1).paths()[-1])


@pytest.mark.parametrize("case", CASES)
def test_saved_on_four_then_two_then_one(case: str) -> None:
    alone, its_state = trained(case, ((1, STAGES[-1][1]),))
    losses, state = trained(case, STAGES)
    assert losses.dtype == torch.float64
    assert alone.std() > 1e-4  # it trains
    assert ((losses - alone) / alone).abs().max() < 1e-10
    assert_close(state, its_state, 1e-12)


def assert_close(found: Any, expected: Any, bound: float, path: str = "state") -> None:
    """Equal up to rounding, in every corner of a checkpoint: by the largest magnitude of a tensor,
    at least 0.1, since AdamW makes steps of gradients that are rounding errors alone."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, path
        if expected.numel():
            scale = expected.double().abs().max().clamp_min(0.1)
            assert (found.double() - expected.double()).abs().max() / scale <= bound, path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_close(found[key], expected[key], bound, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, bound, f"{path}.{number}")
    else:
        assert found == expected, path


# --- Whole runs ---------------------------------------------------------------------------------

MOMENTUM = (
    "method={name: moco_v2, queue_size: 48, head: {name: mlp, hidden_dim: 16, out_dim: 8}, "
    "bn_groups: 4}"
)
WHOLE = ("train.epochs=2", "train.micro_batch_size=8", MOMENTUM)
"""Teacher, queue, BatchNorm, micro-batches, drop path, online probe, 12 steps."""


class Stop:
    """Asks rank 0 to stop after a step, as a queue does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        def on_batch(callback: object, run: object, batch: object, progress: Any) -> None:
            if progress.step == after - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr("sslkit.builtin.augmented_views.AugmentedViews.on_batch", on_batch)

    overrides = ("callbacks=[{name: augmented_views}]",)


def run_on(size: int, recipe: Path, *overrides: str, resume: Path | str | None = None) -> RunResult:
    """A whole run on some processes, as rank 0 sees its end."""

    def work(world: World) -> RunResult:
        again = None if resume is None else str(resume)
        # Paths of the recipe are those of the first start.
        given = None if resume not in (None, "auto") else recipe
        return start(given, list(overrides), resume=again, display=Silent(), world=world)

    first: RunResult = results(on_ranks(work, size))[0]
    return first


def final_state(run: Path) -> dict[str, Any]:
    return load(Checkpoints(run / "checkpoints", 1).paths()[-1])


def logged(run: Path) -> list[tuple[int, dict[str, float]]]:
    """What was logged, without what depends on the clock."""
    found = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        timed = ("perf/", "system/")
        kept = {name: v for name, v in line["metrics"].items() if not name.startswith(timed)}
        found += [(line["step"], kept)] if kept else []
    return found


def assert_same_bits(found: Any, expected: Any) -> None:
    assert_close(found, expected, 0.0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that was never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY + f"runs_dir: {folder / 'runs'}\n")
    return run_on(2, recipe, *WHOLE).run_dir


@pytest.mark.slow  # runs on two processes, a quarter of a minute
@pytest.mark.parametrize("after", [4, 6])  # within an epoch, and at its end
def test_saved_and_resumed_on_two_has_the_same_bits(
    tiny: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patched:
        stop = Stop(patched, after)
        stopped = run_on(2, tiny, *WHOLE, *stop.overrides)
    assert stopped.status == "stopped"
    assert final_state(stopped.run_dir)["step"] == after
    finished = run_on(2, tiny, resume=stopped.run_dir)
    assert finished.status == "finished"
    state = final_state(finished.run_dir)
    assert state["optimization"]["state"]
    assert state["probe"]["optimizer"]["state"]
    assert_same_bits(state, final_state(uninterrupted))
    assert logged(finished.run_dir) == logged(uninterrupted)


@pytest.mark.slow  # runs on four, two and one process, twelve seconds
def test_another_number_of_processes_is_recorded_and_warned_of(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        stop = Stop(patched, 4)
        stopped = run_on(4, tiny, *WHOLE, *stop.overrides).run_dir
    assert environment(stopped)["processes"] == 4
    say = "sslkit.engine.display.Silent.message"
    monkeypatch.setattr(say, lambda self, text: print(text, flush=True))
    for size, before in ((2, 4), (1, 2)):
        with monkeypatch.context() as patched:
            if size == 2:
                Stop(patched, 9)
                run_on(2, tiny, *WHOLE, *stop.overrides, resume=stopped)
            else:
                run_on(1, tiny, resume=stopped)
        said = capfd.readouterr().out
        warning = f"warning: processes {before} -> {size}: changed since this run was last started;"
        assert said.count(f"{warning} from step { {2: 4, 1: 9}[size] } on its numbers") == 1
    assert [entry["changed"] for entry in environment(stopped)["history"]] == [
        {"processes": [4, 2]},
        {"processes": [2, 1]},
    ]


@pytest.mark.slow  # 6 seconds
def test_a_batch_that_does_not_divide_is_refused_and_the_run_is_as_it_was(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop = Stop(patched, 2)
        stopped = run_on(2, tiny, *WHOLE, *stop.overrides).run_dir
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"8 images cannot be shared equally by 3 processes"):
        run_on(3, tiny, resume=stopped)
    assert {path: path.read_bytes() for path in before} == before


def environment(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "environment.json").read_text())
    return found


def test_every_rank_goes_on_from_the_checkpoint_that_rank_0_sees(tmp_path: Path) -> None:
    """Another machine may still see the folder as it was before the newest one was written."""

    def work(world: World) -> int:
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
        world.once(lambda: [checkpoints.save(step, {}) for step in (6, 12)])
        if world.rank == 1:
            checkpoints.paths = lambda: [tmp_path / "checkpoints" / "step-00000006.pt"]  # type: ignore[method-assign]
        state, damaged = checkpoints.load_newest(world)
        assert state is not None
        assert damaged == []
        return int(state["step"])

    assert results(on_ranks(work)) == [12, 12]


def test_damage_is_told_to_every_rank(tmp_path: Path) -> None:
    def work(world: World) -> int:
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
        world.once(lambda: [checkpoints.save(step, {}) for step in (6, 12)])
        world.once(lambda: checkpoints.paths()[-1].write_bytes(b"PK"))
        state, damaged = checkpoints.load_newest(world)
        assert state is not None
        return 1000 * len(damaged) + int(state["step"])

    assert results(on_ranks(work)) == [1006, 1006]


@pytest.mark.slow  # 2 seconds
def test_a_folder_that_an_orphan_still_holds_is_waited_for(tmp_path: Path) -> None:
    """Where torchrun was killed, its process lives on until it misses its peers. One process alone
    is told at once."""
    path = RunFolder.create(tmp_path, "run").path

    def work(world: World) -> bool:
        if world.is_first:
            orphan = _orphan(path)
        world.barrier()
        with held_by_first(world, lambda: hold(path, world)) as folder:
            if world.is_first:
                os.waitpid(orphan, 0)
            return folder.writable

    assert results(on_ranks(work)) == [True, False]
    orphan = _orphan(path)
    with pytest.raises(RunFolderError, match=f"in use by process {orphan} on "):
        hold(path, OneProcess())
    os.waitpid(orphan, 0)


def _orphan(path: Path) -> int:
    """A process that has the folder, and dies a moment later."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = RunFolder.open(path, write=True)
        os.write(tell, b".")
        time.sleep(0.5)
        os._exit(9 if held.writable else 1)
    os.read(told, 1)
    return pid


# --- Started again after the end ------------------------------------------------------------------


def launched(recipe: Path, run_id: str, restarts: tuple[int, ...]) -> Path:
    """Where a launch of torchrun ends. restarts: as the agent of each rank counts them."""

    def work(world: World) -> RunResult:
        os.environ["TORCHELASTIC_RUN_ID"] = run_id
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts[world.rank])
        overrides = ["train.max_steps=2", "evaluate=[]", "train.loader_threads=0"]
        return start(recipe, overrides, resume="auto", display=Silent(), world=world)

    ends = results(on_ranks(work, len(restarts)))
    assert {end.status for end in ends} == {"finished"}
    assert [end.speaks for end in ends] == [True, *[False] * (len(restarts) - 1)]
    (path,) = {end.run_dir for end in ends}
    return path


@pytest.mark.slow  # 4 seconds
def test_a_launch_that_restarts_after_the_end_has_nothing_left_to_do(tiny: Path) -> None:
    """A worker that dies as it leaves makes torchrun start all again; a queue does where a job is
    ended while its tracker takes the last files."""
    first = launched(tiny, "night", (0, 0))
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert launched(tiny, "night", (0, 1)) == first  # only one agent has counted
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((tiny.parent / "runs").iterdir())) == 1


@pytest.mark.slow  # 9 seconds
@pytest.mark.parametrize(("run_id", "restarts"), [("night", 0), ("day", 1), ("none", 1)])
def test_other_launches_begin_a_new_run(tiny: Path, run_id: str, restarts: int) -> None:
    first = launched(tiny, "night" if run_id != "none" else "none", (0,))
    assert launched(tiny, run_id, (restarts,)) != first
