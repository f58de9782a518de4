"""Whole runs: a run is a function of its recipe, wherever it was cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sslkit_moco.moco_v3 import MoCoV3
from sslkit_moco.queue_moco import MoCoV1
from torch.nn import functional

import sslkit
from sslkit.api import Progress
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

RECIPE = """\
name: tiny-moco
data: {name: synthetic, num_train: 84, num_test: 40, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet, drop_path_rate: 0.2}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 2, batch_size: 14, device: cpu, loader_threads: 2, log_every_steps: 3}
evaluate:
  - {name: knn, k: 5, every_epochs: 1}
tracking: {name: none}
"""
"""6 steps an epoch; drop path, so that library randomness matters."""
HEAD = "{name: mlp, hidden_dim: 16, out_dim: 8}"
METHODS = {
    "v1": f"{{name: moco_v1, head: {HEAD}, queue_size: 31, teacher_momentum: 0.9, bn_groups: 3}}",
    "v2-symmetric": f"{{name: moco_v2, head: {HEAD}, queue_size: 50, teacher_momentum: 0.9, "
    "symmetric: true, bn_groups: 2}",
    "v3": f"{{name: moco_v3, projector: {HEAD}, predictor: {HEAD}, teacher_momentum: 0.9}}",
}
"""Queues that no batch divides, and one that two batches fill more than half of."""
EVERY_STEP = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=20")


def write_recipe(folder: Path, method: str) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE + f"method: {METHODS[method]}\nruns_dir: {folder / 'runs'}\n")
    return path


@pytest.fixture(
    params=[
        pytest.param("v1", marks=pytest.mark.slow),  # v2 shares its code
        "v2-symmetric",
        "v3",
    ]
)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def recipe(tmp_path: Path, method: str) -> Path:
    return write_recipe(tmp_path, method)


@pytest.fixture(scope="module")
def references() -> dict[str, Path]:
    """The runs without a stop, of the methods that were asked for."""
    return {}


@pytest.fixture
def reference(
    references: dict[str, Path], method: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if method not in references:
        recipe = write_recipe(tmp_path_factory.mktemp("reference"), method)
        references[method] = run(recipe).run_dir
    return references[method]


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


@pytest.mark.slow  # 13 seconds
def test_cut_off_in_a_step(
    recipe: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The process ends between the optimiser and the queue; what remains are checkpoints."""
    cls, at_step = (MoCoV3 if method == "v3" else MoCoV1), 9
    after_step = cls.after_step

    def fail(self: Any, progress: Progress, carry: Any) -> None:
        if progress.step == at_step:
            raise CutOffError
        after_step(self, progress, carry)

    with monkeypatch.context() as patched:
        patched.setattr(cls, "after_step", fail)
        with pytest.raises(CutOffError):
            run(recipe, *EVERY_STEP)
    (folder,) = (recipe.parent / "runs").iterdir()
    assert final_state(folder)["step"] == at_step - 1
    finished = run(None, resume=folder)
    assert finished.status == "finished"
    assert_same(final_state(folder), final_state(reference))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["v2-symmetric"], indirect=True)
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


@pytest.mark.slow  # 5 seconds
def test_a_checkpoint_holds_teacher_and_queue_and_the_encoder_is_the_student(
    reference: Path, method: str
) -> None:
    state = final_state(reference)["method"]
    online = {name for name in state if name.startswith(("backbone.", "head.", "projector."))}
    teacher = {name for name in state if name.startswith("teacher.module.")}
    assert len(teacher) == len(online) > 0
    assert ("queue.features" in state) == (method != "v3")
    weight = "backbone.model.conv1.0.weight"
    student = sslkit.load_encoder(reference).state_dict()["model.conv1.0.weight"]
    assert torch.equal(student, state[weight])
    assert not torch.equal(student, state[weight.replace("backbone", "teacher.module.0")])


def test_the_queue_is_full_of_keys(reference: Path, method: str) -> None:
    if method == "v3":
        pytest.skip("has no queue")
    state = final_state(reference)["method"]
    pushed = 12 * 14 * (2 if method == "v2-symmetric" else 1)
    size = len(state["queue.features"])
    assert pushed > size
    assert state["queue.pointer"].item() == pushed % size


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("method", ["v2-symmetric"], indirect=True)
def test_number_of_threads_does_not_matter(recipe: Path, reference: Path) -> None:
    found = run(recipe, "train.loader_threads=0").run_dir
    assert_same(final_state(found), final_state(reference))


@pytest.mark.slow  # 6 seconds
def test_micro_batches_take_the_same_steps(recipe: Path, method: str) -> None:
    """On a network without batch statistics, up to rounding; teacher and queue included."""
    heads = ("projector", "predictor") if method == "v3" else ("head",)
    plain = [
        "backbone={name: timm, model: test_vit, patch_size: 8}",
        *(f"method.{head}.hidden_norm=ln" for head in heads),
        *(f"method.{head}.output_norm=none" for head in heads),
        "optimizer={name: sgd, lr: 0.1}",
        "train.max_steps=3",
        "evaluate=[]",
    ]
    whole = final_state(run(recipe, *plain).run_dir)["method"]
    parts = final_state(run(recipe, *plain, "train.micro_batch_size=7").run_dir)["method"]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow  # 2 seconds
@pytest.mark.parametrize("method", ["v2-symmetric"], indirect=True)
def test_micro_batches_with_batch_norm_groups(recipe: Path) -> None:
    """Groups keep their 7 images; a micro-batch of one group is refused before the first step."""
    change = ["train.max_steps=2", "evaluate=[]", "train.batch_size=28", "method.bn_groups=4"]
    assert run(recipe, *change, "train.micro_batch_size=14").status == "finished"
    with pytest.raises(RecipeError, match="micro-batch 7"):
        run(recipe, *change, "train.micro_batch_size=7")


def test_a_logged_accuracy_is_against_the_queue_that_the_loss_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: the share of queries whose key beats every row of the queue before this step's keys
    enter it. With them every query ties with its own key, which halves the accuracy."""
    by_hand = []
    original = MoCoV1.objective

    def watched(self: MoCoV1, embeddings: Any, batch: Any, progress: Any) -> Any:
        query, key = (functional.normalize(embeddings[n][:, 0], dim=1) for n in ("query", "key"))
        own = (query * key).sum(dim=1)
        by_hand.append(
            float((own > (query @ self.queue.features.T).max(dim=1).values).float().mean())
        )
        return original(self, embeddings, batch, progress)

    monkeypatch.setattr(MoCoV1, "objective", watched)
    settings = ("train.log_every_steps=1", "train.max_steps=4", "evaluate=[]")
    done = run(write_recipe(tmp_path, "v1"), *settings).run_dir
    lines = [json.loads(line)["metrics"] for line in (done / "metrics.jsonl").open()]
    found = [line["train/contrastive_top1"] for line in lines if "train/loss" in line]
    assert found == pytest.approx(by_hand)
    assert max(by_hand) > 0.0


@pytest.mark.slow  # 5 seconds
def test_recomputed_blocks_keep_their_groups(tmp_path: Path, method: str) -> None:
    """They are computed again in the backward pass, when the layers are in no groups any more."""
    settings = ("train.max_steps=2", "evaluate=[]")
    states = []
    for again in ("false", "true"):
        (tmp_path / again).mkdir()
        recipe = write_recipe(tmp_path / again, method)
        states.append(final_state(run(recipe, *settings, f"backbone.recompute={again}").run_dir))
    assert_same(states[1]["method"], states[0]["method"])
