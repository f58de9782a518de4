"""`sslkit run --nproc 2` as it is typed: new interpreters, and nothing forked from the test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sslkit.engine.display import Silent
from sslkit.workflows.train import start
from tests.ranks.commands import Command
from tests.ranks.curves import LAYER_NORM, LN_HEAD, RECIPE
from tests.soak.finished import logged

SHORT = [
    *LAYER_NORM, f"method={{name: simclr, head: {LN_HEAD}}}", "train.max_steps=6",
    "train.log_every_steps=1", "evaluate=[{name: knn, k: 2}]",
]  # fmt: skip
"""LayerNorm, since in float32 BatchNorm makes more of the rounding that differs."""


def overriding(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("-o", override)]


@pytest.mark.slow  # real interpreters, a quarter of a minute
def test_it_ends_as_one_process(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    words = "run", "tiny.yaml", "--nproc", "2", *overriding(SHORT)
    command = Command(tmp_path, *words, forked=False)
    alone = start(str(recipe), [*SHORT, f"runs_dir={tmp_path / 'alone'}"], display=Silent()).run_dir
    assert command.wait() == 0, command.errors.read_text()
    assert command.said() == [
        "data: synthetic, 96 training and 16 test images, in memory",
        "training: step 0 of 6",
    ]
    (run,) = (tmp_path / "runs").iterdir()
    assert re.findall(r"^run folder: (.*)$", command.output.read_text(), re.M) == [
        str(run.relative_to(tmp_path))
    ]
    expected = load_file(alone / "encoder.safetensors")
    for name, value in load_file(run / "encoder.safetensors").items():
        assert (value - expected[name]).abs().max() < 1e-6, name
    found, right = logged(run), logged(alone)
    assert [(step, list(metrics)) for step, metrics in found] == [
        (step, list(metrics)) for step, metrics in right
    ]
    losses = [[m["train/loss"] for _, m in each if "train/loss" in m] for each in (found, right)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    scores = [
        json.loads((each / "results.json").read_text())["comparison"] for each in (run, alone)
    ]
    assert scores[0] == scores[1]


@pytest.mark.slow  # 11 seconds
def test_a_wrong_recipe_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("epochs: 10", "epoch: 10"))
    command = Command(tmp_path, "run", "tiny.yaml", "--nproc", "2", forked=False)
    assert command.wait() == 2
    (said,) = command.errors.read_text().splitlines()
    assert re.match(
        r"error: tiny\.yaml:\d+:\d+: train\.epoch: unknown field, did you mean 'epochs'", said
    )
    assert command.output.read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stderr.txt", "stdout.txt", "tiny.yaml",
    ]  # fmt: skip
