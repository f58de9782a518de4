"""Whole runs on series: as repeatable as those on images, through the core as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from series_setup import assert_same, final_state, run, write_recipe
from sslkit_series.resnet1d import ResNet1d
from sslkit_series.waves import Waves
from torch import Tensor

from sslkit.data import cached_split

EVERY_STEP = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=20")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a stop."""
    torch.set_num_threads(1)
    return run(write_recipe(tmp_path_factory.mktemp("reference"))).run_dir


class CutOffError(BaseException):
    """Stands for the end of the process: nothing between it and the interpreter handles it."""


@pytest.mark.slow  # 7 seconds
def test_cut_off_in_a_step(recipe: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in the forward pass of step 8; what remains are checkpoints."""
    forward, steps = ResNet1d.forward, []

    def fail(self: ResNet1d, series: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            steps.append(1)
            if len(steps) == 9:  # one more: the first step is tried before it is taken
                raise CutOffError
        return forward(self, series)

    with monkeypatch.context() as patched:
        patched.setattr(ResNet1d, "forward", fail)
        with pytest.raises(CutOffError):
            run(recipe, *EVERY_STEP)
    (folder,) = (recipe.parent / "runs").iterdir()
    assert 5 <= final_state(folder)["step"] <= 8
    finished = run(None, resume=folder)
    assert finished.status == "finished"
    assert_same(final_state(folder), final_state(reference))


@pytest.mark.slow  # three processes
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


@pytest.mark.slow  # five seconds; tests/engine has it for images
def test_number_of_threads_does_not_matter(
    recipe: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does whether series are in memory or read by loader threads."""
    assert_same(final_state(run(recipe, "train.loader_threads=0").run_dir), final_state(reference))
    without_memory(monkeypatch)
    for threads in (0, 4):
        found = run(recipe, f"train.loader_threads={threads}").run_dir
        assert_same(final_state(found), final_state(reference))


def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are read as they are needed."""

    def load(self: cached_split.CachedSplit, *given: Any) -> None:
        return None

    monkeypatch.setattr(cached_split.CachedSplit, "_load", load)


@pytest.mark.slow  # 4 seconds
def test_files_with_the_same_waves_have_the_same_baselines(recipe: Path, reference: Path) -> None:
    """Raw series are what they were, in another order."""
    fields = {"num_train": 84, "num_test": 40, "length": 32, "channels": 2, "periods": (1.0, 4.0)}
    source = Waves(Waves.Config(**fields))
    for split in ("train", "test"):
        reader = source.open(split)
        assert reader is not None
        for index, label in enumerate(reader.labels):
            path = recipe.parent / split / f"{reader.class_names[label]}/{index:03}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, reader.read(index))
    data = f"{{name: series_folder, train: {recipe.parent}/train, test: {recipe.parent}/test}}"
    found = run(recipe, f"data={data}", "train.max_steps=2", "evaluate=[{name: knn, k: 5}]")
    assert raw_accuracy(found.run_dir) == pytest.approx(raw_accuracy(reference))


def raw_accuracy(run_dir: Path) -> float:
    """kNN of the raw series."""
    rows = json.loads((run_dir / "results.json").read_text())["comparison"]
    (value,) = [
        each["value"]
        for row in rows
        if (row["protocol"], row["metric"]) == ("knn", "top1")
        for name, each in row["values"].items()
        if name not in ("trained", "untrained")
    ]
    return float(value)
