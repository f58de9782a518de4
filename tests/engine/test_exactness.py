"""A run is a function of its recipe: equal bits for any number of threads and after any stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import sslkit
from sslkit.api import Progress
from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError, RecipeError
from sslkit.runs.checkpoint import load
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start
from tests.ranks.commands import Command

TIMED = ("perf/", "system/")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run(recipe: Path, *overrides: str, resume: Path | None = None) -> RunResult:
    return start(
        None if resume else recipe,
        list(overrides),
        resume=str(resume) if resume else None,
        display=Silent(),
    )


def final_state(run_dir: Path) -> dict[str, object]:
    return load(sorted((run_dir / "checkpoints").iterdir())[-1])


def assert_same(a: object, b: object, path: str = "state") -> None:
    """Bit for bit, in every corner of a checkpoint."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple)
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}.{i}")
    else:
        assert a == b, path


def logged(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """What was logged, without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        (
            line["step"],
            {key: value for key, value in line["metrics"].items() if not key.startswith(TIMED)},
        )
        for line in lines
    ]
    return [(step, metrics) for step, metrics in kept if metrics]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, run without a stop."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("reference")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY + f"runs_dir: {folder / 'runs'}\n")
    torch.set_num_threads(1)
    return run(recipe).run_dir


@pytest.mark.slow  # 7 seconds
def test_number_of_threads_does_not_matter_in_memory(tiny: Path, reference: Path) -> None:
    for threads in (0, 4):
        found = run(tiny, f"train.loader_threads={threads}").run_dir
        assert_same(final_state(found), final_state(reference))
        assert logged(found) == logged(reference)


@pytest.mark.slow  # 2 seconds
def test_number_of_threads_does_not_matter_when_decoding(tiny: Path, tmp_path: Path) -> None:
    for index in range(40):
        size = (20 + index % 7, 18 + index % 5)
        pixels = torch.randint(0, 255, (*reversed(size), 3), dtype=torch.uint8)
        folder = tmp_path / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    change = f"data={{name: image_folder, train: {tmp_path / 'images'}}}"
    runs = [
        run(tiny, change, "evaluate=[]", f"train.loader_threads={threads}").run_dir
        for threads in (0, 4)
    ]
    assert_same(final_state(runs[0]), final_state(runs[1]))


@pytest.mark.parametrize("stop_after", [1, 6, 11])
def test_stop_and_resume(
    tiny: Path,
    reference: Path,
    only_run: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    """SIGTERM in the middle of an epoch, at its end, and later; then on to the end."""

    def terminate(self: object, run: object, batch: object, progress: Progress) -> None:
        if progress.step == stop_after - 1:  # the step in progress is finished before the stop
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(AugmentedViews, "on_batch", terminate)
        stopped = run(tiny, "callbacks=[{name: augmented_views}]")
    assert stopped.status == "stopped"
    assert final_state(only_run())["step"] == stop_after

    finished = run(tiny, resume=stopped.run_dir)
    assert finished.status == "finished"
    assert_same(final_state(finished.run_dir), final_state(reference))
    assert logged(finished.run_dir) == logged(reference)


@pytest.mark.parametrize(
    ("at_steps", "forked"),
    [((10,), True), pytest.param((3, 10), False, marks=pytest.mark.slow)],  # half a minute
    ids=["once", "twice"],
)
def test_kill_and_resume(
    tiny: Path,
    reference: Path,
    only_run: Callable[[], Path],
    at_steps: tuple[int, ...],
    forked: bool,
) -> None:
    """A real process and a real `kill -9`; a new interpreter each, or forks of this one."""
    words = [str(tiny), "-o", "train.checkpoint_every_steps=1", "-o", "train.keep_checkpoints=9"]

    def sslkit_run() -> Command:
        return Command(tiny.parent, "run", *words, forked=forked, environment=ONE_THREAD)

    for at_step in at_steps:
        killed, saved = sslkit_run(), f"*/checkpoints/step-{at_step:08d}.pt"
        killed.wait_for(lambda saved=saved: any((tiny.parent / "runs").glob(saved)))
        killed.process.kill()
        assert killed.wait() == -signal.SIGKILL
        words = ["--resume", str(only_run())]
    assert sslkit_run().wait() == 0

    assert_same(final_state(only_run()), final_state(reference))
    assert logged(only_run()) == logged(reference)


@pytest.mark.slow  # 5 seconds
def test_resume_auto(tiny: Path, reference: Path, only_run: Callable[[], Path]) -> None:
    first = start(str(tiny), ["train.max_steps=18"], resume="auto", display=Silent())
    assert first.status == "finished"
    again = start(str(tiny), ["train.max_steps=18"], resume="auto", display=Silent())
    assert again.run_dir != first.run_dir  # a finished run is not gone on with

    (again.run_dir / "results.json").unlink()
    third = start(str(tiny), ["train.max_steps=18"], resume="auto", display=Silent())
    assert third.run_dir == again.run_dir
    assert logged(third.run_dir) == logged(first.run_dir)


def test_damaged_checkpoint_falls_back(tiny: Path, reference: Path) -> None:
    found = run(tiny, "train.keep_checkpoints=3").run_dir
    (found / "results.json").unlink()
    newest = sorted((found / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-500])
    assert_same(final_state(run(tiny, resume=found).run_dir), final_state(reference))


@pytest.mark.slow  # 2 seconds
def test_resume_refuses_another_recipe(tiny: Path) -> None:
    found = run(tiny, "train.max_steps=2").run_dir
    (found / "results.json").unlink()
    with pytest.raises(RecipeError, match=r"optimizer\.lr: the run has 0\.001, .* 0\.5; .*--fork"):
        run(tiny, "optimizer.lr=0.5", resume=found)
    assert run(tiny, "train.loader_threads=0", resume=found).status == "finished"


def test_resume_refuses_other_data(tiny: Path) -> None:
    found = run(tiny, "train.max_steps=2").run_dir
    (found / "results.json").unlink()
    environment = json.loads((found / "environment.json").read_text())
    environment["data"]["train"] = "something else"
    (found / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(CheckpointError, match="the train data has changed"):
        run(tiny, resume=found)


def test_resume_refuses_a_finished_run(tiny: Path) -> None:
    found = run(tiny, "train.max_steps=1").run_dir
    with pytest.raises(RecipeError, match="is finished"):
        run(tiny, resume=found)


def test_fork_goes_on_from_the_whole_state(tiny: Path, reference: Path) -> None:
    """A fork of the state at epoch 2 with the same recipe ends where the run itself ended."""
    source = run(tiny, "train.keep_checkpoints=3").run_dir
    checkpoint = source / "checkpoints" / "step-00000012.pt"
    forked = start(str(tiny), [], fork=checkpoint, display=Silent())
    assert forked.run_dir != source
    assert_same(final_state(forked.run_dir), final_state(reference))
    environment = json.loads((forked.run_dir / "environment.json").read_text())
    assert environment["forked_from"] == str(checkpoint)


def test_fork_that_does_not_fit(tiny: Path, reference: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit this recipe .* backbone\.weights"):
        start(
            str(tiny), ["method.head.out_dim=4", "train.epochs=4"], fork=reference, display=Silent()
        )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", "is at step 18, and this recipe ends at step 18"),
        ("train.batch_size=12", "has 6 steps an epoch and this recipe 8"),
    ],
)
def test_fork_without_a_meaning(tiny: Path, reference: Path, override: str, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        start(str(tiny), [override], fork=reference, display=Silent())


def test_seed_matters(tiny: Path, reference: Path) -> None:
    other = final_state(run(tiny, "seed=1").run_dir)["method"]
    mine = final_state(reference)["method"]
    assert any(not torch.equal(mine[key], other[key]) for key in mine)


@pytest.mark.slow  # 2 seconds
def test_python_api(tiny: Path, reference: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    result = sslkit.run(tiny)
    assert torch.equal(torch.get_rng_state(), before)  # a run leaves the caller's generator alone
    assert_same(final_state(result.run_dir), final_state(reference))
    assert 0.0 <= result.metrics["eval/knn/top1"] <= 1.0
    assert result.mlflow_run_id is None
