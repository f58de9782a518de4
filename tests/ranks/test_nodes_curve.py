"""Two nodes under torchrun train as one process does: in float64 step by step, and as a command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslkit.engine.display import Silent
from sslkit.parallel.world import OneProcess
from sslkit.workflows.train import start
from tests.conftest import REPOSITORY
from tests.ranks.curve_of_rank import curves_of
from tests.ranks.curves import LAYER_NORM, LN_HEAD, RECIPE
from tests.ranks.test_curves import assert_curve
from tests.ranks.test_nodes_train import AGENT, VARIABLES, Nodes
from tests.soak.finished import logged

STEPS = {"simclr-batch-whole": 50, "moco_v2-batch-parts": 12}
"""BatchNorm over both nodes; a teacher, a queue, groups and micro-batches, where rounding errors
grow faster."""
SHORT = [
    *LAYER_NORM, f"method={{name: simclr, head: {LN_HEAD}}}", "train.max_steps=12",
    "train.log_every_steps=1", "evaluate=[{name: knn, k: 2}]",
]  # fmt: skip
"""LayerNorm, since in float32 BatchNorm makes more of the rounding that differs."""

pytestmark = [
    pytest.mark.slow,  # half a minute for each: torch is imported on both nodes
    pytest.mark.timeout(600),
]


def on_both(nodes: Nodes, folder: Path, *words: str) -> None:
    """Runs `python WORDS` on both nodes, under torchrun."""
    variables = {**VARIABLES, "PYTHONPATH": str(REPOSITORY)}
    agents = []
    for node in nodes:
        with (folder / f"{node.name}.log").open("w") as log:
            command = [sys.executable, *AGENT, *words]
            agents.append(node.start(command, env=variables, output=log))
    codes = [agent.wait(timeout=400) for agent in agents]
    assert codes == [0, 0], (folder / "node0.log").read_text()[-2000:]


def test_the_curve_is_that_of_one_process(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"{name}={steps}" for name, steps in STEPS.items()]
    on_both(nodes, tmp_path, "-m", "tests.ranks.curve_of_rank", str(tmp_path), *words)
    (tmp_path / "alone").mkdir()
    alone = curves_of(OneProcess(), tmp_path / "alone", STEPS)
    assert alone.keys() == STEPS.keys()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, expected in alone.items():
            assert len(expected["losses"]) == STEPS[name]
            assert_curve(found[name], expected, f"{name}, rank {rank} of two nodes")


def test_a_run_is_that_of_one_process(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    overrides = [word for each in SHORT for word in ("-o", each)]
    on_both(nodes, tmp_path, "-m", "sslkit", "run", "tiny.yaml", *overrides)
    (run,) = (tmp_path / "runs").iterdir()
    alone = start("tiny.yaml", [*SHORT, "runs_dir=alone"], display=Silent()).run_dir
    found, expected = (dict(losses(each)) for each in (run, alone))
    assert list(expected) == [*range(1, 13)]
    assert found == pytest.approx(expected, rel=1e-6)
    weights = load_file(alone / "encoder.safetensors")
    for name, value in load_file(run / "encoder.safetensors").items():
        assert (value - weights[name]).abs().max() < 1e-6, name


def losses(run: Path) -> list[tuple[int, float]]:
    return [(step, found["train/loss"]) for step, found in logged(run) if "train/loss" in found]
