"""Stops at awkward moments: at a log step, at the end of an epoch, during an evaluation."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.engine.display import Silent
from sslkit.errors import SSLKitError
from sslkit.runs.state import read_state
from sslkit.workflows.train import start

CALLBACK = "callbacks=[{name: augmented_views}]"


def raising(at: int) -> Callable[..., None]:
    def hook(self: object, run: object, metrics: object, progress: object) -> None:
        if progress.step == at:
            signal.raise_signal(signal.SIGTERM)

    return hook


@pytest.mark.parametrize("at", [2, 6])
def test_signal_while_logging(tiny: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(AugmentedViews, "on_step", raising(at))
    stopped = start(str(tiny), [CALLBACK, "train.checkpoint_every_epochs=9"], display=Silent())
    assert stopped.status == "stopped"
    assert read_state(stopped.run_dir)["step"] == at


def test_signal_during_evaluation(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AugmentedViews, "on_evaluation", raising(6))
    stopped = start(str(tiny), [CALLBACK, "train.checkpoint_every_epochs=9"], display=Silent())
    assert stopped.status == "stopped"
    assert read_state(stopped.run_dir)["step"] == 6


@pytest.mark.slow  # 3 seconds
def test_fork_killed_before_its_first_checkpoint(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = start(str(tiny), ["train.max_steps=4", "evaluate=[]"], display=Silent()).run_dir

    def crash(self: object, *args: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(AugmentedViews, "on_start", crash)
        with pytest.raises(ZeroDivisionError):
            start(str(tiny), [CALLBACK, "evaluate=[]"], fork=source, display=Silent())
    (forked,) = set((tiny.parent / "runs").iterdir()) - {source}
    seen = []
    monkeypatch.setattr(AugmentedViews, "on_batch", lambda s, r, b, p: seen.append(p.step))
    start(None, [], resume=str(forked), display=Silent())
    assert seen[0] == 4


def test_kill_while_data_is_loaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr("sslkit.experiment.stores.CachedSplit", crash)
        with pytest.raises(SSLKitError, match="stopped by SIGINT before the first step"):
            start(str(tiny), ["train.max_steps=1"], display=Silent())
    done = start(str(tiny), ["train.max_steps=1"], resume="auto", display=Silent())
    assert done.status == "finished"


def test_resume_with_data_moved(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(32):
        pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "a" / f"{index}.png")
    run_dir = start(
        str(tiny),
        [
            f"data={{name: image_folder, train: {tmp_path / 'a'}}}",
            "train.max_steps=1",
            "evaluate=[]",
        ],
        display=Silent(),
    ).run_dir
    (run_dir / "results.json").unlink()
    (tmp_path / "a").rename(tmp_path / "b")
    result = start(None, [f"data.train={tmp_path / 'b'}"], resume=str(run_dir), display=Silent())
    assert result.status == "finished"
