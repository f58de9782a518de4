"""A run on two nodes: that of two processes on one, also where a node dies and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY
from tests.ranks.two_nodes import Node

Nodes = tuple[Node, Node]

RUN = [
    *("-m", "sslkit", "run", "tiny.yaml", "--resume", "auto"),
    *("-o", "train.epochs=12", "-o", "evaluate=[]", "-o", "train.checkpoint_every_steps=5"),
]
AGENT = [
    *("-m", "torch.distributed.run", "--nnodes=2", "--max-restarts=3", "--rdzv-id=tiny"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=node0:29500"),
    "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=3",  # 3 s for a dead node, not 15
]
VARIABLES = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without the second one a node that returns is never met again: see the how-to."""

pytestmark = [
    pytest.mark.slow,  # half a minute for each: torch is imported up to nine times
    pytest.mark.timeout(600),
]


def result(folder: Path) -> tuple[list[tuple[int, float]], dict[str, torch.Tensor]]:
    """Losses and the encoder of the one run in a folder."""
    (run,) = (folder / "runs").iterdir()
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = [(line["step"], line["metrics"]) for line in lines]
    losses = [(step, found["train/loss"]) for step, found in logged if "train/loss" in found]
    assert [step for step, _ in losses] == list(range(2, 73, 2))
    return losses, load_file(run / "encoder.safetensors")


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[tuple[int, float]], dict[str, torch.Tensor]]:
    """What two processes on this machine come to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(TINY)
    command = [sys.executable, *RUN, "--nproc", "2"]
    subprocess.run(command, cwd=folder, env={**os.environ, **VARIABLES}, check=True)
    return result(folder)


def start(node: Node) -> subprocess.Popen[str]:
    with Path(f"{node.name}.log").open("a") as log:
        return node.start([sys.executable, *AGENT, *RUN], env=VARIABLES, output=log)


def wait_for_a_checkpoint(folder: Path) -> None:
    end = time.monotonic() + 200
    while not list(folder.glob("runs/*/checkpoints/*.pt")):
        assert time.monotonic() < end, (folder / "node0.log").read_text()[-2000:]
        time.sleep(0.02)


@pytest.mark.parametrize("dying", [1, 0], ids=["node1", "node0"])
def test_a_run_on_two_nodes_ends_to_the_bit_as_one_on_one(
    nodes: Nodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[list[tuple[int, float]], dict[str, torch.Tensor]],
    dying: int,
) -> None:
    """node0 has the meeting point and rank 0: where it dies, nothing can go on by itself, and both
    are started again by the same command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    agents = [start(node) for node in nodes]
    wait_for_a_checkpoint(tmp_path)
    nodes[dying].kill()
    agents[dying].wait()
    if dying == 0:
        assert agents[1].wait(timeout=100) == 1
        agents[1] = start(nodes[1])
    agents[dying] = start(nodes[dying])
    codes = [agent.wait(timeout=250) for agent in agents]
    assert codes == [0, 0], (tmp_path / "node0.log").read_text()[-2000:]
    losses, encoder = result(tmp_path)
    assert losses == undisturbed[0]
    assert encoder.keys() == undisturbed[1].keys()
    assert all(torch.equal(encoder[name], undisturbed[1][name]) for name in encoder)
