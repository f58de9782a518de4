"""Chains: a run that is stopped and gone on with, held against one that ran through."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .chains import METHODS, STORE, Variant
from .finished import differences, store_faults
from .moments import Moment, arm, choose_moment, file_changes
from .oracle import message_faults
from .sandbox import Outcome, call_sslkit, run

STOPS = 5
"""Of a chain, at most."""


@dataclass
class Chain:
    """A run, how it was stopped, and what is wrong with what it ended as."""

    variant: Variant
    stops: list[Moment] = field(default_factory=list)
    """Signals that came before the process ended by itself."""
    processes: int = 0
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        kinds = Counter(stop.kind for stop in self.stops)
        return {
            "method": self.variant.name,
            "stops": [str(stop) for stop in self.stops],
            "segments": self.processes,
            "kinds": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
            "faults": self.faults,
        }


@dataclass(frozen=True)
class Reference:
    """The same run without a stop."""

    run: Path
    cpu_s: float
    events: int
    """How often it changes a file."""


def kill_chains(seed: int, kills: int, scratch: Path, methods: Sequence[str] = ()) -> list[Chain]:
    """Chains of up to `STOPS` stops, the methods in turn, every second round tracked, until there
    were `kills` stops."""
    empty_store = _empty_store(scratch)
    references: dict[Variant, Reference] = {}
    chains: list[Chain] = []
    for number, variant in enumerate(_variants(methods or tuple(METHODS))):
        left = kills - sum(len(chain.stops) for chain in chains)
        if left <= 0:
            return chains
        folder = scratch / f"chain-{number}"
        if variant not in references:
            references[variant] = _reference(variant, scratch / f"reference-{number}", empty_store)
        generator = random.Random(f"kills:{seed}:{number}")
        chain = _run_chain(
            variant, references[variant], generator, min(left, STOPS), folder, empty_store
        )
        chains.append(chain)
        shown = "; ".join(chain.faults) or "as without a stop"
        print(f"{number} {variant.name}: {len(chain.stops)} stops: {shown}", flush=True)
    raise AssertionError


def _variants(methods: Sequence[str]) -> Iterator[Variant]:
    tracked = True
    while True:
        yield from (Variant(method, tracked) for method in methods)
        tracked = not tracked


def _empty_store(scratch: Path) -> Path:
    """An MLflow store without runs, made by a process of its own."""
    folder = scratch / "store"
    (folder / "work").mkdir(parents=True)

    def call(arguments: list[str]) -> None:
        from sslkit.builtin import mlflow_store

        del arguments
        uri = f"sqlite:///{folder / 'work' / STORE}"
        with mlflow_store.creation_lock(uri):
            mlflow_store.client(uri)

    _checked(run(folder, [], call))
    return folder / "work" / STORE


def _reference(variant: Variant, folder: Path, empty_store: Path) -> Reference:
    work = folder / "work"
    work.mkdir(parents=True)
    variant.write(work, empty_store)

    def call(arguments: list[str]) -> None:
        count = file_changes()
        try:
            call_sslkit(arguments)
        finally:
            (folder / "events").write_text(str(count()))

    outcome = _checked(run(folder, ["run", "recipe.yaml"], call))
    (made,) = (work / "runs").iterdir()
    return Reference(made, outcome.cpu_s, int((folder / "events").read_text()))


def _checked(outcome: Outcome) -> Outcome:
    if outcome.code:
        raise RuntimeError(outcome.stderr[-2000:])
    return outcome


def _run_chain(
    variant: Variant, reference: Reference, generator: random.Random, stops: int, folder: Path,
    empty_store: Path,
) -> Chain:  # fmt: skip
    work = folder / "work"
    work.mkdir(parents=True)
    variant.write(work, empty_store)
    chain = Chain(variant)
    by_auto = generator.random() < 0.5
    for _ in range(stops):
        moment = choose_moment(generator, reference.cpu_s, reference.events)
        if _is_over(work) or not _segment(chain, folder, _start(work, by_auto), moment):
            break  # it had ended before the signal came
    if not _is_over(work):
        _segment(chain, folder, _start(work, by_auto))
    else:  # stopped between its last file and the end of its process, as `sync` finds out
        _segment(chain, folder, ["sync", str(_newest(work))])
    ended = _newest(work)
    if ended is None or not _is_over(work):
        chain.faults.append("never ended")
        return chain
    chain.faults += differences(ended, reference.run)
    if variant.tracked:
        chain.faults += store_faults(work / STORE, ended)
    return chain


def _segment(
    chain: Chain, folder: Path, arguments: list[str], moment: Moment | None = None
) -> bool:
    """One process of a chain. Returns whether the signal reached it; what it should not do is
    noted in the chain."""
    reached = folder / "reached"
    reached.unlink(missing_ok=True)

    def call(words: list[str]) -> None:
        if moment is not None:
            arm(moment, reached)
        call_sslkit(words)

    outcome = run(folder, arguments, call)
    chain.processes += 1
    stopped = moment is not None and reached.exists()
    if stopped and moment is not None:
        chain.stops.append(moment)
    valid = _CODES[moment.signal] if stopped and moment is not None else (0,)
    where = f"{' '.join(arguments)} ({moment if stopped else 'not stopped'})"
    faults = [fault for fault in message_faults(outcome) if outcome.code != -signal.SIGKILL]
    if outcome.hung or outcome.code not in valid:
        faults.append(f"ended with code {outcome.code}: {outcome.stderr.strip()[-300:]}")
    chain.faults += [f"{where}: {fault}" for fault in faults]
    return stopped


_CODES: dict[signal.Signals, tuple[int, ...]] = {
    signal.SIGKILL: (-signal.SIGKILL,),
    # Before sslkit takes them over, signals do what the system does; after the end, nothing.
    signal.SIGTERM: (0, 1, -signal.SIGTERM),
    signal.SIGINT: (0, 1, 130),
}


def _start(work: Path, by_auto: bool) -> list[str]:
    """The command that starts the run of a chain, or goes on with it."""
    newest = _newest(work)
    if by_auto:
        return ["run", "recipe.yaml", "--resume", "auto"]
    return ["run", "recipe.yaml"] if newest is None else ["run", "--resume", str(newest)]


def _newest(work: Path) -> Path | None:
    """The run folder of a chain; None before there is one that can be gone on with."""
    found = sorted((work / "runs").glob("*/recipe.resolved.yaml"))
    return found[-1].parent if found else None


def _is_over(work: Path) -> bool:
    newest = _newest(work)
    return newest is not None and (newest / "results.json").exists()
