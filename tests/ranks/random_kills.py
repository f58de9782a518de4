"""Chains of runs on two processes, each a real command that is killed at a random moment and gone
on with by `--resume auto`, and held against the run that nobody killed."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.ranks.commands import Command
from tests.soak.chains import STORE, Variant
from tests.soak.finished import differences, logged, store_faults

LIMIT_S = 60.0
"""How long all others may live after a kill."""
STOPS = 5
"""Of a chain, at most."""
VARIANTS = (Variant("simclr", False), Variant("moco_v2", True), Variant("byol", False))
"""In turn: a queue and a teacher are kept, MLflow watches each third chain."""
WORDS = ("run", "recipe.yaml", "--nproc", "2", "--resume", "auto")
STEPS, STEPS_OF_EPOCH = 24, 6
_NEWS = re.compile(
    r"data: |training: |  \w+/|warning: evaluate\.0\.k: |/.*: no checkpoint; starting from "
)
"""What a command says that nothing happened to; 5 neighbours are many for the few images."""
_MARK = "SSLKIT_TEST_CHAIN"
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Plan:
    """What is killed, and when."""

    whom: str
    """`rank 0`, `rank 1` or `parent`."""
    when: str
    """`any time`, or what is waited for: `training`, `checkpoint`, `evaluation`."""
    after: float
    """Which part of that."""


@dataclass(frozen=True)
class Kill:
    """What a kill met, and what came of it."""

    whom: str
    at: str
    """What the run was at, as its files say."""
    seconds: float
    """Until everybody else had ended."""


@dataclass
class Chain:
    """A run, its kills, and what is wrong with what it did and ended as."""

    variant: Variant
    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        kills = [asdict(kill) for kill in self.kills]
        return {"method": self.variant.name, "kills": kills, "faults": self.faults}


@dataclass(frozen=True)
class Reference:
    """The run that nobody killed."""

    run: Path
    seconds: float


def choose(generator: random.Random) -> Plan:
    """Half of the kills at any time, most of which is start-up; the rest where files are made."""
    whom = generator.choices(["rank 0", "rank 1", "parent"], [0.4, 0.4, 0.2])[0]
    moments = ["any time", "training", "checkpoint", "evaluation"]
    when = generator.choices(moments, [0.4, 0.15, 0.25, 0.2])[0]
    return Plan(whom, when, generator.random())


def kill_chains(seed: int, kills: int, scratch: Path) -> list[Chain]:
    """Chains of up to `STOPS` kills, the variants in turn, until there were `kills`."""
    references: dict[Variant, Reference] = {}
    chains: list[Chain] = []
    while (left := kills - sum(len(chain.kills) for chain in chains)) > 0:
        variant = VARIANTS[len(chains) % len(VARIANTS)]
        if variant not in references:
            references[variant] = _reference(variant, scratch / f"reference-{len(chains)}")
        generator = random.Random(f"rank kills:{seed}:{len(chains)}")
        chain = Chain(variant)
        run_chain(chain, references[variant], generator, min(left, STOPS), scratch, len(chains))
        chains.append(chain)
        met = "; ".join(f"{kill.whom} at {kill.at}, {kill.seconds:.1f} s" for kill in chain.kills)
        print(f"{len(chains) - 1} {variant.name}: {met}", flush=True)
        print("\n".join(f"  fault: {fault}" for fault in chain.faults), flush=True)
    return chains


def _reference(variant: Variant, folder: Path) -> Reference:
    folder.mkdir(parents=True)
    untracked = Variant(variant.method, tracked=False)
    untracked.write(folder, Path())
    command = Command(folder, *WORDS, forked=False)
    assert command.wait() == 0, command.errors.read_text()
    (run,) = (folder / "runs").iterdir()
    return Reference(run, time.monotonic() - command.started)


def run_chain(
    chain: Chain, reference: Reference, generator: random.Random, stops: int, scratch: Path,
    number: int,
) -> None:  # fmt: skip
    """Kills, goes on, and notes in the chain what came of it."""
    folder = scratch / f"chain-{number}"
    folder.mkdir(parents=True)
    _write(chain.variant, folder)
    shared = _shared_files()
    for _ in range(stops):
        if is_over(folder) or not _killed(chain, reference, choose(generator), folder):
            break
    if not is_over(folder):
        command = _start(folder, *WORDS)
    else:  # killed between its last file and its end: the tracker may miss something
        command = _start(folder, "sync", str(newest(folder)))
    if code := command.wait():
        chain.faults.append(f"the last command ended with code {code}: {command.said()[-3:]}")
    chain.faults += _end_faults(chain.variant, folder, reference)
    if left := _shared_files() - shared:
        chain.faults.append(f"shared memory is left: {sorted(left)}")


def _write(variant: Variant, folder: Path) -> None:
    empty = folder / "empty.db"
    empty.touch()  # MLflow makes its tables in it
    variant.write(folder, empty)
    empty.unlink()


def _end_faults(variant: Variant, folder: Path, reference: Reference) -> list[str]:
    """What of the end of a chain is not as in the run that nobody killed."""
    begun = runs(folder)
    if len(begun) != 1:
        return [f"{len(begun)} runs were begun"]
    (run,) = begun
    if not is_over(folder):
        return ["never ended"]
    found = differences(run, reference.run)
    steps = [step for step, metrics in logged(run) if "train/loss" in metrics]
    if steps != list(range(1, STEPS + 1)):
        found.append(f"the losses are of steps {steps}")
    return found + (store_faults(folder / STORE, run) if variant.tracked else [])


# --- One kill -------------------------------------------------------------------------------------


def _killed(chain: Chain, reference: Reference, plan: Plan, folder: Path) -> bool:
    """Starts the command and kills one of its processes. Returns whether it came in time; what
    should not have happened is noted in the chain."""
    command = _start(folder, *WORDS)
    begun = command.step()
    _wait_for_moment(command, plan, reference.seconds)
    whom, process = _victim(command, plan.whom)
    if not _is_running(process):
        return not _ended_well(chain, command)
    os.kill(process, signal.SIGKILL)
    since = time.monotonic()
    at = stage_of(folder, begun)
    faults = []
    while alive := [each for each in processes(folder) if each != process]:
        command.process.poll()
        if time.monotonic() - since > LIMIT_S:
            faults.append(f"{len(alive)} processes live after {LIMIT_S:.0f} s")
            _end(alive)
        time.sleep(0.02)
    seconds = time.monotonic() - since
    code = command.wait()
    chain.kills.append(Kill(whom, at, seconds))
    faults += message_faults(whom, command.said(), is_over(folder))
    if code != (-signal.SIGKILL if whom == "parent" else 1):
        faults.append(f"ended with code {code}")
    chain.faults += [f"{whom} killed at {at}: {fault}" for fault in faults]
    return True


def _ended_well(chain: Chain, command: Command) -> bool:
    """Whether a command that the kill came too late for ended as it should."""
    if code := command.wait():
        chain.faults.append(f"not killed, and ended with code {code}: {command.said()[-3:]}")
    return True


def message_faults(whom: str, said: Sequence[str], over: bool) -> list[str]:
    """What is wrong with the lines of a command of which one process was killed. over: the run had
    written its results before."""
    told = [line for line in said if not _NEWS.match(line)]
    if over and not told:
        return []
    if whom == "parent":
        right = r"(error: )?stopped by (SIGTERM|a stop on another rank)\b.*"
    else:
        right = rf"error: {whom} was ended by SIGKILL(; stopped at step .*|; .*)?"
    if len(told) == 1 and re.fullmatch(right, told[0]):
        return []
    return [f"said {told}"]


def _start(folder: Path, *words: str) -> Command:
    return Command(folder, *words, forked=False, environment={_MARK: str(folder)})


def _wait_for_moment(command: Command, plan: Plan, seconds: float) -> None:
    """Returns at the moment, or when the command has ended."""
    begun = command.step()
    conditions: dict[str, Callable[[], bool]] = {
        "any time": lambda: time.monotonic() - command.started > plan.after * seconds,
        "training": lambda: command.step() > begun + plan.after * (STEPS - begun - 1),
        "checkpoint": lambda: _is_saving(command.folder),
        "evaluation": lambda: command.step() > begun and command.step() % STEPS_OF_EPOCH == 0,
    }
    skipped = int(2 * plan.after) if plan.when == "checkpoint" else 0
    while command.process.poll() is None:
        if conditions[plan.when]():
            if not skipped:
                break
            skipped -= 1
            while conditions[plan.when]() and command.process.poll() is None:
                time.sleep(0.0005)
        time.sleep(0.0005)
    if plan.when == "evaluation":
        time.sleep(0.3 * plan.after)


def _is_saving(folder: Path) -> bool:
    return any(folder.glob("runs/*/checkpoints/.step-*.tmp"))


def _victim(command: Command, whom: str) -> tuple[str, int]:
    """Its name and process; the parent where the rank does not run (yet)."""
    ranks = command.ranks()
    if whom != "parent" and len(ranks) == 2:
        return whom, ranks[int(whom[-1])]
    return "parent", command.process.pid


# --- What is there --------------------------------------------------------------------------------


def runs(folder: Path) -> list[Path]:
    """The runs of a chain that can be gone on with, or are finished."""
    return [path.parent for path in sorted((folder / "runs").glob("*/recipe.resolved.yaml"))]


def newest(folder: Path) -> Path | None:
    """The last of them; None where there is none."""
    return next(reversed(runs(folder)), None)


def is_over(folder: Path) -> bool:
    """Whether the run of a chain is finished."""
    run = newest(folder)
    return run is not None and (run / "results.json").exists()


def stage_of(folder: Path, begun: int = 0) -> str:
    """What the run of a chain was at when it was killed, as its files say. begun: the last step
    before the command."""
    run, step = newest(folder), 0
    metrics: dict[str, Any] = {}
    if run is not None and is_over(folder):
        return "end"
    with suppress(OSError, ValueError, IndexError):
        step, metrics = logged(run or folder)[-1]
    if run is None or step <= begun:
        return "start"
    if any(run.glob("checkpoints/.step-*.tmp")):
        return "checkpoint"
    if any(run.glob(".*.tmp")):
        return "file"
    if step % STEPS_OF_EPOCH == 0 and "train/loss" in metrics:
        return "evaluation"
    return f"step {step}"


def processes(folder: Path) -> list[int]:
    """Every process that was started for a chain and runs, whoever its parent is."""
    mark = f"{_MARK}={folder}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if mark in (path / "environ").read_bytes() and _is_running(int(path.name)):
                found.append(int(path.name))
    return found


def _is_running(process: int) -> bool:
    """Whether it is neither gone nor ended and waited for by nobody."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _end(alive: Sequence[int]) -> None:
    for process in alive:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _shared_files() -> set[str]:
    """What sslkit holds in shared memory; what others on this machine hold for a moment goes."""
    until = time.monotonic() + 5
    while (found := {path.name for path in _SHARED.glob("sslkit-*")}) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def report(seed: int, chains: Sequence[Chain]) -> dict[str, Any]:
    """All chains in figures."""
    kills = [kill for chain in chains for kill in chain.kills]
    times = sorted(kill.seconds for kill in kills)
    return {
        "what": "kills of one of two ranks, or of their parent",
        "seed": seed,
        "kills": len(kills),
        "faults": sum(len(chain.faults) for chain in chains),
        "whom": dict(Counter(kill.whom for kill in kills)),
        "at": dict(Counter(re.sub(r"step \d+", "a step", kill.at) for kill in kills)),
        "seconds": {"median": times[len(times) // 2], "worst": times[-1]} if times else {},
        "chains": [chain.to_json() for chain in chains],
    }
