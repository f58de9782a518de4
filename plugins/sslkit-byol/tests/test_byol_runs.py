"""Whole runs: a run is a function of its recipe, wherever it was cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sslkit_byol.method import BYOL

import sslkit
from sslkit.api import Progress
from sslkit.engine.display import Silent
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

RECIPE = """\
name: tiny-byol
data: {name: synthetic, num_train: 84, num_test: 40, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet, drop_path_rate: 0.2}
method:
  name: byol
  projector: {name: mlp, hidden_dim: 16, out_dim: 8, hidden_bias: true, output_norm: none}
  predictor: {name: mlp, hidden_dim: 16, out_dim: 8, hidden_bias: true, output_norm: none}
  teacher_momentum: {name: cosine, start: 0.9, end: 1.0}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 2, batch_size: 14, device: cpu, loader_threads: 2, log_every_steps: 3}
evaluate:
  - {name: knn, k: 5, every_epochs: 1}
tracking: {name: none}
"""
"""6 steps an epoch; drop path, so that library randomness matters."""
EVERY_STEP = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=20")


def write_recipe(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE + f"runs_dir: {folder / 'runs'}\n")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a stop."""
    torch.set_num_threads(1)
    return run(write_recipe(tmp_path_factory.mktemp("reference"))).run_dir


def run(recipe: Path | None, *overrides: str, resume: Path | None = None) -> RunResult:
    return start(recipe, overrides, resume=str(resume) if resume else None, display=Silent())


def final_state(run_dir: Path) -> dict[str, Any]:
    path = sorted((run_dir / "checkpoints").iterdir())[-1]
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def assert_same(a: Any, b: Any, path: str = "state") -> None:
    """Bit for bit, in every corner of a checkpoint."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}.{index}")
    else:
        assert a == b, path


class CutOffError(BaseException):
    """Stands for the end of the process: nothing between it and the interpreter handles it."""


@pytest.mark.slow  # 8 seconds
@pytest.mark.parametrize("at_step", [2, 9])
def test_cut_off_in_a_step(
    recipe: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, at_step: int
) -> None:
    """The process ends between the optimiser and the teacher; what remains are checkpoints."""

    def fail(self: BYOL, progress: Progress, carry: Any) -> None:
        if progress.step == at_step:
            raise CutOffError
        after_step(self, progress, carry)

    after_step = BYOL.after_step
    with monkeypatch.context() as patched:
        patched.setattr(BYOL, "after_step", fail)
        with pytest.raises(CutOffError):
            run(recipe, *EVERY_STEP)
    (folder,) = (recipe.parent / "runs").iterdir()
    assert final_state(folder)["step"] == at_step - 1
    finished = run(None, resume=folder)
    assert finished.status == "finished"
    assert_same(final_state(folder), final_state(reference))


@pytest.mark.slow
def test_killed(recipe: Path, reference: Path) -> None:
    """A real process and a real `kill -9`."""
    command = [sys.executable, "-m", "sslkit", "run"]
    flags = [word for override in EVERY_STEP for word in ("-o", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(recipe), *flags], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    while not list((recipe.parent / "runs").glob("*/checkpoints/step-00000004.pt")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (recipe.parent / "runs").iterdir()
    resumed = [*command, str(recipe), *flags, "--resume", str(folder)]
    subprocess.run(resumed, env=environment, check=True, capture_output=True)
    assert_same(final_state(folder), final_state(reference))


@pytest.mark.slow  # 2 seconds
def test_a_checkpoint_holds_the_teacher_and_the_encoder_is_the_student(reference: Path) -> None:
    state = final_state(reference)["method"]
    online = {name for name in state if name.startswith(("backbone.", "projector."))}
    teacher = {name for name in state if name.startswith("teacher.module.")}
    assert len(teacher) == len(online) > 0
    weight = "backbone.model.conv1.0.weight"
    student = sslkit.load_encoder(reference).state_dict()["model.conv1.0.weight"]
    assert torch.equal(student, state[weight])
    assert not torch.equal(student, state[weight.replace("backbone", "teacher.module.0")])


@pytest.mark.slow  # 2 seconds
def test_number_of_threads_does_not_matter(recipe: Path, reference: Path) -> None:
    found = run(recipe, "train.loader_threads=0").run_dir
    assert_same(final_state(found), final_state(reference))


@pytest.mark.slow  # 3 seconds
def test_micro_batches_take_the_same_steps(recipe: Path) -> None:
    """On a network without batch statistics, up to rounding."""
    plain = [
        "backbone={name: timm, model: test_vit, patch_size: 8}",
        "method.projector.hidden_norm=ln",
        "method.predictor.hidden_norm=ln",
        "optimizer={name: sgd, lr: 0.1}",
        "train.max_steps=3",
        "evaluate=[]",
    ]
    whole = final_state(run(recipe, *plain).run_dir)["method"]
    parts = final_state(run(recipe, *plain, "train.micro_batch_size=7").run_dir)["method"]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
