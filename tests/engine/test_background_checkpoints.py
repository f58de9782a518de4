"""`train.checkpoint_in_background`: training goes on while a checkpoint is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.runs.checkpoint import BackgroundCheckpoints, Checkpoints, load
from sslkit.workflows.train import start

STATE = {"weights": torch.arange(4.0), "nested": {"moments": [torch.ones(2)]}, "step": 3}


class Held:
    """Holds what writes a checkpoint back, after its first bytes, until it is released once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on, self.begun = threading.Semaphore(0), threading.Event()
        save = torch.save

        def held(state: Any, file: Any) -> None:
            file.write(b"")
            self.begun.set()
            assert self.go_on.acquire(timeout=20)
            save(state, file)

        monkeypatch.setattr(torch, "save", held)


def test_nothing_is_seen_of_it_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = BackgroundCheckpoints(tmp_path / "checkpoints", keep=2)
    held, weights = Held(monkeypatch), torch.arange(4.0)
    path = checkpoints.save(3, {"weights": weights})
    assert held.begun.wait(20)
    weights += 1  # training goes on
    assert checkpoints.paths() == []
    held.go_on.release()
    checkpoints.wait()
    assert checkpoints.paths() == [path]
    assert load(path)["weights"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_next_one_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = BackgroundCheckpoints(tmp_path / "checkpoints", keep=1)
    held = Held(monkeypatch)
    checkpoints.save(3, STATE)
    threading.Timer(0.1, held.go_on.release).start()
    checkpoints.save(6, STATE)
    assert [path.name for path in checkpoints.paths()] == ["step-00000003.pt"]
    held.go_on.release()
    checkpoints.wait()
    assert [path.name for path in checkpoints.paths()] == ["step-00000006.pt"]


def test_a_kill_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = BackgroundCheckpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(3, STATE)
    checkpoints.wait()
    pid = os.fork()
    if pid == 0:
        held = Held(monkeypatch)
        checkpoints.save(6, STATE)
        held.begun.wait(20)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    newest, damaged = checkpoints.load_newest()
    assert newest is not None
    assert (newest["step"], damaged) == (3, [])


def test_what_could_not_be_written_ends_the_run(tmp_path: Path) -> None:
    checkpoints = BackgroundCheckpoints(tmp_path / "gone" / "checkpoints", keep=2)
    checkpoints.save(3, STATE)
    with pytest.raises(TrainingError, match="is gone"):
        checkpoints.save(6, STATE)
    checkpoints.wait()  # said once


@pytest.mark.slow  # 4 seconds
def test_a_run_has_the_same_checkpoint(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as one that waits for each of them."""
    overrides = ["train.epochs=2", "train.checkpoint_every_steps=1", "evaluate=[]"]
    waited = start(tiny, overrides, display=Silent()).run_dir
    monkeypatch.setattr(Checkpoints, "paths", slow(Checkpoints.paths))
    more = [*overrides, "train.checkpoint_in_background=true"]
    gone_on = start(tiny, more, display=Silent()).run_dir
    one, other = (sorted((run / "checkpoints").iterdir()) for run in (waited, gone_on))
    assert [path.name for path in one] == [path.name for path in other]
    for first, second in zip(one, other, strict=True):
        assert_equal(load(first), load(second))


def slow(work: Any) -> Any:
    def later(*given: Any) -> Any:
        threading.Event().wait(0.01)
        return work(*given)

    return later


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


@pytest.mark.slow  # 2 seconds
def test_a_step_is_saved_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it ends an epoch."""
    saved = []
    save = Checkpoints.save

    def noted(self: Checkpoints, step: int, state: Any) -> Path:
        saved.append(step)
        return save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", noted)
    overrides = ["train.epochs=2", "train.checkpoint_every_steps=3", "evaluate=[]"]
    start(tiny, overrides, display=Silent())
    assert saved == [3, 6, 9, 12]
