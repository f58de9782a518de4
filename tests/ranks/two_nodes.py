"""Two nodes on one machine: two network namespaces with a cable between them.

Each node has an own host name, an own list of hosts, an own loopback and one address, as two
machines have. They share files and processors. Everything is gone when the processes that hold the
namespaces are, which end with the process that made them, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PROGRAMS = ("ip", "mount", "nsenter", "setpriv", "unshare")
_NEW = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount")
_HOLD = """hostname "$1" && mount --bind "$2/hosts" /etc/hosts &&
mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf && ip link set lo up && exec sleep infinity"""


class Unavailable(Exception):
    """Why there cannot be two nodes here, in one line."""


@dataclass(frozen=True)
class Node:
    """One of the nodes."""

    name: str
    """Its host name, which both nodes know."""
    address: str
    """Its address on the cable."""
    holder: int
    """The process that holds its namespaces."""

    def start(
        self,
        command: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        output: IO[str] | int | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a command on the node, in the present folder, without waiting for it; stderr goes
        with stdout."""
        inside = [*_enter(self.holder), "--uts", "--mount", "--wd=.", "--", *command]
        variables = {**os.environ, "GLOO_SOCKET_IFNAME": "cable", **(env or {})}
        return subprocess.Popen(
            inside, env=variables, stdout=output, stderr=subprocess.STDOUT, text=True
        )

    def processes(self) -> list[int]:
        """Every process on the node, the holder left out."""
        here = network(self.holder)
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            process = int(path.name)
            if process != self.holder and network(process) == here:
                found.append(process)
        return found

    def kill(self) -> None:
        """Ends all processes on the node at once, as when the machine is shut off: the system
        closes their connections, which the other node hears of."""
        while running := [each for each in self.processes() if _state(each) != "Z"]:
            for each in running:
                _kill(each)
            time.sleep(0.01)

    def cut(self, *, off: bool = True) -> None:
        """Pulls the cable out, or with off=False puts it in again: the other node hears nothing."""
        _check([*_enter(self.holder), "ip", "link", "set", "cable", "down" if off else "up"])


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """The two nodes; `folder` takes their list of hosts, the only place where they look for names.
    Raises Unavailable where there cannot be any."""
    _refuse()
    names, addresses = ("node0", "node1"), ("10.77.0.1", "10.77.0.2")
    lines = [f"{address} {name}" for address, name in zip(addresses, names, strict=True)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    (folder / "nsswitch.conf").write_text("hosts: files\n")
    holders: list[subprocess.Popen[str]] = []
    nodes: list[Node] = []
    try:
        for name, address in zip(names, addresses, strict=True):
            holders.append(_hold(name, folder))
            nodes.append(Node(name, address, holders[-1].pid))
        first, second = nodes
        _lay_cable(first, second)
        yield first, second
    finally:
        for node in nodes:
            node.kill()
        for holder in holders:
            holder.kill()
            holder.wait()


def network(process: int) -> str:
    """The network namespace of a process; empty where it has ended."""
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:
        return ""


def _refuse() -> None:
    if sys.platform != "linux":
        raise Unavailable("two nodes need network namespaces, which Linux alone has")
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        raise Unavailable(f"two nodes need {', '.join(missing)} (util-linux, iproute2)")
    if os.geteuid() != 0:
        raise Unavailable("two nodes need root, to make network namespaces")


def _hold(name: str, folder: Path) -> subprocess.Popen[str]:
    """A process in new namespaces; returns once it has its own network."""
    holder = subprocess.Popen(
        [*_NEW, "sh", "-c", _HOLD, "sh", name, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while _command(holder.pid) != "sleep":
        if holder.poll() is not None:
            assert holder.stderr is not None
            raise Unavailable(f"two nodes: {holder.stderr.read().strip()[:200]}")
        time.sleep(0.005)
    return holder


def _lay_cable(first: Node, second: Node) -> None:
    end = ["type", "veth", "peer", "name", "cable", "netns", str(second.holder)]
    _check([*_enter(first.holder), "ip", "link", "add", "cable", *end])
    for node in (first, second):
        inside = _enter(node.holder)
        _check([*inside, "ip", "address", "add", f"{node.address}/24", "dev", "cable"])
        _check([*inside, "ip", "link", "set", "cable", "up"])


def _enter(holder: int) -> list[str]:
    return ["nsenter", "--target", str(holder), "--net"]


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"two nodes: {' '.join(command[4:])}: {done.stderr.strip()[:200]}")


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
