"""Ranks that fall silent: frozen, or behind a cable that is out. The others end within a minute,
and one of them says why. There is no parent here that could see it, as under torchrun or srun."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.errors import RankError
from sslkit.parallel import processes
from sslkit.parallel.world import World
from tests.conftest import TINY
from tests.ranks.forked import LostRankError, on_ranks
from tests.ranks.two_nodes import Node

Nodes = tuple[Node, Node]

DOING: dict[str, Callable[[World], Any]] = {
    "a collective": lambda world: world.sum(torch.ones(2)),
    "what rank 0 does alone": lambda world: world.once(lambda: None),
    "work of its own": lambda world: time.sleep(100),
}


@pytest.mark.slow  # 26 seconds
@pytest.mark.parametrize("doing", DOING)
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], doing: str, frozen: int
) -> None:
    monkeypatch.setenv("SSLKIT_RANK_TIMEOUT", "2")
    monkeypatch.setattr(processes, "_GRACE_S", 2.0)

    def work(world: World) -> None:
        pids = world.collect(os.getpid())
        if world.rank == 2:
            os.kill(pids[frozen], signal.SIGSTOP)
        DOING["work of its own" if world.rank == frozen else doing](world)

    ends = on_ranks(work, 3, limit_s=60)
    assert isinstance(ends.pop(frozen), LostRankError)
    said = re.findall("error: (.*)\n", capfd.readouterr().err)  # where the main thread was ended
    said += [str(end) for end in ends if isinstance(end, RankError) and not end.said]
    assert len(said) == 1, ends
    assert re.fullmatch(rf"rank {frozen} gave no sign of life for \d+ s", said[0])


# --- Two machines ---------------------------------------------------------------------------------


def start(node: Node, rank: int) -> Any:
    """A rank of its own on a node, started by hand as its launcher would."""
    words = "-o", "train.epochs=500", "-o", "evaluate=[]", "-o", "train.checkpoint_every_steps=5"
    variables = {
        "OMP_NUM_THREADS": "1",
        "SSLKIT_RANK_TIMEOUT": "10",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29400",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }
    with Path(f"{node.name}.log").open("w") as log:
        command = [sys.executable, "-m", "sslkit", "run", "tiny.yaml", *words]
        return node.start(command, env=variables, output=log)


@pytest.mark.slow  # torch is imported twice, and the ranks wait for each other
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dead", [None, 0, 1], ids=["cut", "node0", "node1"])
def test_ranks_on_both_ends_of_a_cable_that_is_out_end(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: int | None
) -> None:
    """dead: a node that loses its power at that moment, so that it can send no farewell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    ranks = [start(node, rank) for rank, node in enumerate(nodes)]
    while not list(tmp_path.glob("runs/*/checkpoints/*.pt")):
        assert all(rank.poll() is None for rank in ranks), Path("node0.log").read_text()
        time.sleep(0.02)
    nodes[1].cut()
    if dead is not None:
        nodes[dead].kill()
    (run,) = (tmp_path / "runs").iterdir()
    for rank, process in enumerate(ranks):
        code = process.wait(timeout=40)  # 10 for the silence, and what is promised beside it
        if rank == dead:
            continue
        assert code == 1
        lines = Path(f"node{rank}.log").read_text().splitlines()
        errors = [line for line in lines if not line.startswith(("step ", "data: ", "training: "))]
        assert len(errors) == 1, errors
        assert re.fullmatch(
            rf"error: rank {1 - rank} gave no sign of life for \d+ s; stopped at step \d+ of 3000 "
            rf"\(saved in step-\d+.pt.*\); go on with: sslkit run --resume {run}",
            errors[0],
        )
