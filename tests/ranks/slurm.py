"""SLURM for real on one machine: its daemons with a configuration, a key, ports and a folder of
their own, for the time of a `with` block. Nothing of a SLURM that is there already is touched.

Jobs run as the same user. Partitions: `main`, and `urgent`, whose jobs preempt those of `main`,
which are requeued after three seconds of grace."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "setpriv")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PATIENCE_S = 30.0

_CONFIGURATION = """\
ClusterName=sslkit
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime=3
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=2 PreemptMode=OFF
"""


class Unavailable(Exception):
    """Why SLURM cannot run here, in one line."""


@dataclass(frozen=True)
class Slurm:
    """The running daemons."""

    folder: Path
    """Their configuration, state and logs."""

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a command needs to talk to them: nothing of a job that this process is in."""
        outside = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        conf = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}
        return {**outside, **conf, **(more or {})}

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        cwd: Path | None = None,
    ) -> str:
        """What `srun`, `sbatch`, `scontrol` ... print; raises where they fail."""
        done = subprocess.run(
            command,
            env=self.environment(env),
            input=input,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=10 * _PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *arguments: str, cwd: Path | None = None) -> int:
        """The number of a job given to sbatch."""
        return int(self.run("sbatch", "--parsable", *arguments, cwd=cwd))

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says of it, such as JobState and Restarts."""
        words = self.run("scontrol", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: int, *states: str, within: float = 4 * _PATIENCE_S) -> dict[str, str]:
        """The job, once its state is one of those given."""
        end = time.monotonic() + within
        while (job := self.job(number))["JobState"] not in states:
            if time.monotonic() > end:
                raise TimeoutError(f"job {number} is {job['JobState']}, not {' or '.join(states)}")
            time.sleep(0.1)
        return job


@contextmanager
def slurm(folder: Path, *, nodes: int = 1, cpus: int = 4) -> Iterator[Slurm]:
    """SLURM with `nodes` nodes of `cpus` processors each, whatever this machine has. Raises
    Unavailable where it cannot run."""
    _refuse()
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    _write_configuration(folder, nodes, cpus)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    found = Slurm(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_start_munge(found))
        daemons.append(_start(found, "slurmctld.log", "slurmctld", "-D"))
        daemons.extend(
            _start(found, f"slurmd-n{i}.log", "slurmd", "-D", "-N", f"n{i}") for i in range(nodes)
        )
        _await_nodes(found, daemons, nodes)
        yield found
    finally:
        _stop(found, daemons)


def _refuse() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Unavailable("SLURM needs Linux and root, to start its daemons")
    if missing := [each for each in _PROGRAMS if shutil.which(each, path=_PATH) is None]:
        raise Unavailable(f"SLURM needs {', '.join(missing)} (Debian: slurm-wlm, munge)")


def _write_configuration(folder: Path, nodes: int, cpus: int) -> None:
    ports = _free_ports(nodes + 1)
    lines = [
        f"NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
        for i, port in enumerate(ports[1:])
    ]
    text = _CONFIGURATION.format(folder=folder, ports=ports, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(text)
    (folder / "state").mkdir()
    for i in range(nodes):
        (folder / f"spool-n{i}").mkdir()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(found: Slurm, log_name: str, *command: str) -> subprocess.Popen[bytes]:
    """A daemon in the foreground, which ends with this process."""
    with (found.folder / log_name).open("wb") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env=found.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _start_munge(found: Slurm) -> subprocess.Popen[bytes]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{option}={found.folder}/munge.{ending}" for option, ending in files.items()]
    daemon = _start(found, "munge.log", "munged", "--foreground", "--force", *options)
    end = time.monotonic() + _PATIENCE_S
    while not (found.folder / "munge.socket").exists():
        if daemon.poll() is not None or time.monotonic() > end:
            raise Unavailable(f"munged does not start: {_last_line(found.folder / 'munge.log')}")
        time.sleep(0.02)
    return daemon


def _await_nodes(found: Slurm, daemons: Sequence[subprocess.Popen[bytes]], nodes: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    state = ""
    while state.split() != ["idle"] * nodes:
        if any(each.poll() is not None for each in daemons) or time.monotonic() > end:
            logs = sorted(found.folder.glob("slurm*.log"))
            said = "; ".join(f"{log.name}: {_last_line(log)}" for log in logs)
            raise Unavailable(f"SLURM does not start: {said}")
        time.sleep(0.05)
        asked = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%t"]
        state = subprocess.run(
            asked, env=found.environment(), capture_output=True, text=True, check=False
        ).stdout


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return (lines or ["no log"])[-1][:200]


def _stop(found: Slurm, daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the daemons, and then whatever still runs of the jobs."""
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in reversed(daemons):
        try:
            daemon.wait(timeout=5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    ours = f"SLURM_CONF={found.folder}/slurm.conf".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if ours in (path / "environ").read_bytes().split(b"\0"):
                os.kill(int(path.name), signal.SIGKILL)
        except OSError:  # it has ended, or is another user's
            continue
