"""Makes inputs, runs a command on each, judges what came of it, and adds it all up."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .annotation_files import make_annotations
from .attempt import Attempt, InputId, Maker
from .images import make_images
from .oracle import judge
from .packs import make_pack
from .parquet_files import make_parquet_file
from .recipes import make_overrides, make_recipe, make_training
from .run_folders import make_run_folder
from .sandbox import Child, Outcome, call_sslkit, remove, start, wait
from .stock import Stock
from .weight_files import make_weights

KINDS: dict[str, tuple[Maker, int]] = {
    "recipes": (make_recipe, 26),
    "overrides": (make_overrides, 16),
    "training": (make_training, 6),
    "folders": (make_run_folder, 18),
    "parquet": (make_parquet_file, 10),
    "packs": (make_pack, 6),
    "images": (make_images, 9),
    "weights": (make_weights, 6),
    "annotations": (make_annotations, 3),
}
"""Kind -> how an input is made, and how many of a hundred are of this kind."""


@dataclass(frozen=True)
class Finding:
    """An input that brought up faults."""

    id: InputId
    command: str
    what: str
    faults: list[str]


@dataclass
class Tally:
    """What came of the inputs of a kind."""

    inputs: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    worst_cpu_s: float = 0.0
    """Beyond what the clean input takes."""
    worst_cpu_id: str = ""
    worst_mb: float = 0.0
    """The same of memory."""
    worst_mb_id: str = ""
    findings: list[Finding] = field(default_factory=list)

    def add(self, found: InputId, attempt: Attempt, outcome: Outcome, stock: Stock) -> None:
        """Counts an input."""
        needs = stock.needs[attempt.command]
        self.inputs += 1
        self.codes[outcome.code] += 1
        cpu_s, mb = outcome.cpu_s - needs.cpu_s, outcome.peak_mb - needs.peak_mb
        if cpu_s > self.worst_cpu_s:
            self.worst_cpu_s, self.worst_cpu_id = cpu_s, str(found)
        if mb > self.worst_mb:
            self.worst_mb, self.worst_mb_id = mb, str(found)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "inputs": self.inputs,
            "codes": {str(code): count for code, count in sorted(self.codes.items())},
            "worst_cpu_s": round(self.worst_cpu_s, 2),
            "worst_cpu_input": self.worst_cpu_id,
            "worst_extra_mb": round(self.worst_mb),
            "worst_extra_mb_input": self.worst_mb_id,
            "faults": [
                {"input": str(f.id), "command": f.command, "what": f.what, "faults": f.faults}
                for f in self.findings
            ],
        }


def choose(seed: int, count: int, kinds: Sequence[str] = ()) -> list[InputId]:
    """`count` inputs, the kinds mixed as `KINDS` says."""
    shares = {kind: share for kind, (_, share) in KINDS.items() if not kinds or kind in kinds}
    total = sum(shares.values())
    found, given = [], 0
    for number, (kind, share) in enumerate(shares.items()):
        last = number == len(shares) - 1
        amount = count - given if last else round(count * share / total)
        found += [InputId(kind, seed, index) for index in range(amount)]
        given += amount
    return sorted(found, key=lambda one: (one.number / (shares[one.kind] * count), one.kind))


def fuzz(ids: Sequence[InputId], stock: Stock, scratch: Path, jobs: int) -> dict[str, Tally]:
    """Runs all of them, `jobs` at a time. Folders of inputs without a fault are removed."""
    tallies = {kind: Tally() for kind in KINDS}
    digest = stock.digest()
    for number, (found, attempt, outcome, folder) in enumerate(_run_all(ids, stock, scratch, jobs)):
        tally = tallies[found.kind]
        tally.add(found, attempt, outcome, stock)
        faults = judge(outcome, stock.needs[attempt.command], folder)
        if attempt.check is not None and not faults:
            faults = attempt.check(outcome)
        if faults:
            command = shlex.join(["sslkit", *attempt.arguments])[:500]
            tally.findings.append(Finding(found, command, attempt.what, faults))
            print(f"{found}: {attempt.what[:160]}: {'; '.join(faults)[:400]}", flush=True)
        remove(folder)
        if number % 100 == 99:
            print(f"{number + 1} of {len(ids)}", file=sys.stderr, flush=True)
    if stock.digest() != digest:
        raise RuntimeError(f"an input, or its command, changed the files below {stock.root}")
    return tallies


def prepare(found: InputId, stock: Stock, scratch: Path) -> tuple[Attempt, Path]:
    """Makes an input in a folder of its own below `scratch`."""
    folder = scratch / f"{found.kind}-{found.seed}-{found.number}"
    (folder / "work").mkdir(parents=True)
    return KINDS[found.kind][0](found.generator(), folder / "work", stock), folder


def _run_all(
    ids: Sequence[InputId], stock: Stock, scratch: Path, jobs: int
) -> Iterator[tuple[InputId, Attempt, Outcome, Path]]:
    waiting = list(reversed(ids))
    running: list[Child] = []
    known: dict[int, tuple[InputId, Attempt, Path]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            found = waiting.pop()
            attempt, folder = prepare(found, stock, scratch)
            child = start(folder, attempt.arguments, call_sslkit)
            running.append(child)
            known[child.pid] = (found, attempt, folder)
        for child, outcome in wait(running):
            found, attempt, folder = known.pop(child.pid)
            yield found, attempt, outcome, folder
