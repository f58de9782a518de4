"""That two nodes on one machine are two for the programs on them, and what torchrun does there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks.two_nodes import Node, Unavailable, network, two_nodes

Nodes = tuple[Node, Node]

LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
server.accept()
server.accept()
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 5000), timeout=5).close()
    print(socket.gethostname(), "reached", sys.argv[1])
except OSError as error:
    print(socket.gethostname(), type(error).__name__)
"""
REDUCE = """
import datetime, os, socket, sys, time
import torch, torch.distributed as dist

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
for step in range(int(sys.argv[1])):
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    where = f"{socket.gethostname()} rank {dist.get_rank()} of {dist.get_world_size()}"
    print(f"{where} restart {restarts} step {step} sum {total:g}\\n", end="", flush=True)
    time.sleep(0.05)
dist.destroy_process_group()
"""
"""All print whole lines: an all-reduce of 1 and 2 gives 3 in every step."""


def program(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", text, *arguments]


def said(node: Node, command: list[str]) -> str:
    """What a command prints on a node."""
    process = node.start(command, output=subprocess.PIPE)
    return process.communicate(timeout=30)[0].strip()


def reach(nodes: Nodes, address: str) -> str:
    """What the second node says of a server that listens at an address of the first."""
    server = nodes[0].start(program(LISTEN, address), output=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    answer = said(nodes[1], program(CONNECT, address))
    nodes[0].kill()
    server.communicate()
    return answer


def test_each_node_has_its_own_loopback(nodes: Nodes) -> None:
    assert reach(nodes, "node0") == "node1 reached node0"
    assert reach(nodes, "127.0.0.1") == "node1 ConnectionRefusedError"


def test_a_command_on_a_node_works_in_the_present_folder(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(nodes[1], ["pwd"]) == str(tmp_path)


def test_a_killed_node_has_no_processes(nodes: Nodes) -> None:
    nested = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    process = nodes[1].start(program(nested))
    other = nodes[0].start(["sleep", "60"])
    wait_until(lambda: len(nodes[1].processes()) == 2)
    nodes[1].kill()
    assert nodes[1].processes() == []
    assert process.wait(timeout=10) == -9
    assert other.poll() is None
    nodes[0].kill()
    other.wait()


def test_what_a_cut_cable_hides(nodes: Nodes) -> None:
    nodes[1].cut()
    assert said(nodes[0], ["ip", "-brief", "link", "show", "cable"]).split()[1] == "DOWN"
    nodes[1].cut(off=False)
    assert reach(nodes, nodes[0].address) == f"node1 reached {nodes[0].address}"


def test_nothing_is_left(tmp_path: Path) -> None:
    links = Path("/sys/class/net")
    before = sorted(links.iterdir())
    try:
        with two_nodes(tmp_path) as both:
            both[0].start(["sleep", "60"])
            namespaces = {network(node.holder) for node in both}
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert sorted(links.iterdir()) == before
    assert "node0" not in Path("/etc/hosts").read_text()
    assert len(namespaces) == 2

    def running() -> set[str]:
        return {network(int(path.name)) for path in Path("/proc").glob("[0-9]*")}

    wait_until(lambda: not running() & namespaces)


def wait_until(true: Callable[[], bool], within: float = 60) -> None:
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- torchrun -------------------------------------------------------------------------------------


def torchrun(node: Node, script: Path, log: Path, steps: int) -> subprocess.Popen[str]:
    """One node's torchrun: as `docs/howto` says, with shorter patience for a dead node."""
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=node0:29500", "--rdzv-id=test"]
    patience = "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=3"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--max-restarts=1"]
    variables = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with log.open("a") as output:
        return node.start(
            [*command, *rendezvous, patience, str(script), str(steps)], env=variables, output=output
        )


@pytest.mark.slow  # a quarter of a minute: torch is imported eight times
@pytest.mark.timeout(300)
def test_a_node_that_was_killed_returns(nodes: Nodes, tmp_path: Path) -> None:
    """What sslkit builds on, and what it asks of torchrun: TORCH_DISABLE_SHARE_RDZV_TCP_STORE.
    Without it the node that returns waits for an address that nobody writes."""
    script, log = tmp_path / "reduce.py", tmp_path / "log"
    script.write_text(REDUCE)
    agents = [torchrun(node, script, log, 60) for node in nodes]
    wait_until(lambda: "step 10 " in log.read_text(), within=120)
    nodes[1].kill()
    agents[1].wait()
    agents[1] = torchrun(nodes[1], script, log, 60)
    assert [agent.wait(timeout=150) for agent in agents] == [0, 0]
    lines = re.findall(
        r"(node\d) rank (\d) of 2 restart (\d) step (\d+) sum (\S+)", log.read_text()
    )
    assert {total for *_, total in lines} == {"3"}
    assert {(node, rank) for node, rank, *_ in lines} == {("node0", "0"), ("node1", "1")}
    # The count is an agent's own: the node that stayed has restarted, the new one has not.
    last = {node: restart for node, _, restart, step, _ in lines if step == "59"}
    assert last == {"node0": "1", "node1": "0"}
