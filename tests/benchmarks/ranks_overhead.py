"""What several processes add to a step: the share of it that gathering rows, batch statistics,
the reduction of gradients and the repeated objective take, by processes and batch, beside the
ceiling: the same networks under plain DistributedDataParallel on a batch that lies ready.

    python -m tests.benchmarks.ranks_overhead --ranks 1 2 --batch 64 256 --steps 20

Medians of wall time over the steps, on rank 0. On a machine that is shared with others, or has
fewer cores than processes, the shares say little: processes then wait for each other's turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslkit.api import Batch, Method
from sslkit.engine import step as engine_step
from sslkit.engine.training import Training
from sslkit.nn import shared_statistics
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from tests.ranks.curves import begin, make
from tests.ranks.forked import on_ranks

_WARM_UP = 2


@dataclass(frozen=True)
class Overhead:
    """Of one number of processes and one batch."""

    ranks: int
    batch: int
    step_ms: float
    ceiling_ms: float
    """The same networks under plain DistributedDataParallel, loss and optimiser trivial."""
    gather: float
    """Parts of the step, 0 to 1: embeddings of all processes."""
    statistics: float
    """Messages of BatchNorm."""
    reduction: float
    """Gradients, as far as the backward pass does not hide them: what the ceiling takes more than
    without its messages."""
    objective: float
    """The loss of the whole batch and its gradient, on each process."""


class Networks(nn.Module):
    """A method's `embed` as a module that gives the squares of its embeddings."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        parts = [v.square().mean() for v in self.method.embed(batch).values() if v.requires_grad]
        return torch.stack(parts).sum()


def timed(work: Callable[[], object], steps: int) -> list[float]:
    """Seconds of each step after the warm-up."""
    found = []
    for _ in range(_WARM_UP + steps):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return found[_WARM_UP:]


@contextmanager
def clocked(clocks: dict[str, float], name: str, owner: Any, attribute: str) -> Iterator[None]:
    """Adds the time in a function to a clock."""
    inner = getattr(owner, attribute)

    def outer(*given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return inner(*given, **named)
        finally:
            clocks[name] += time.perf_counter() - begun

    setattr(owner, attribute, outer)
    try:
        yield
    finally:
        setattr(owner, attribute, inner)


def measured_steps(t: Training, batch: Batch, steps: int) -> tuple[float, dict[str, float]]:
    """Median of a step in seconds, and the median of each part of it."""
    parts: dict[str, list[float]] = defaultdict(list)
    seconds = []
    clocks: dict[str, float] = defaultdict(float)
    with (
        clocked(clocks, "gather", t.compute.world, "gather_rows"),
        clocked(clocks, "statistics", shared_statistics, "gather_detached"),
        clocked(clocks, "statistics", shared_statistics, "reduce_detached"),
        clocked(clocks, "objective", engine_step, "objective"),
        clocked(clocks, "objective", t.learner.embedder, "objective_gradients"),
    ):
        for _ in range(_WARM_UP + steps):
            clocks.clear()
            begun = time.perf_counter()
            engine_step.train_step(t, batch)
            seconds.append(time.perf_counter() - begun)
            for name in ("gather", "statistics", "objective"):
                parts[name].append(clocks[name])
    return median(seconds[_WARM_UP:]), {n: median(v[_WARM_UP:]) for n, v in parts.items()}


def ceiling(t: Training, batch: Batch, steps: int) -> tuple[float, float]:
    """Median of a step under plain DistributedDataParallel, and of one without its messages."""
    networks: Any = Networks(t.method)
    optimizer = torch.optim.SGD([p for p in t.method.parameters() if p.requires_grad], lr=1e-4)
    several = t.compute.world.size > 1
    if several:
        networks = DistributedDataParallel(networks)

    def step() -> None:
        optimizer.zero_grad()
        networks(batch).backward()
        optimizer.step()

    def silent_step() -> None:
        with networks.no_sync() if several else nullcontext():
            step()

    seconds = median(timed(step, steps))
    return seconds, median(timed(silent_step, steps)) if several else seconds


def measure(
    world: World, place: Path, batch_size: int, steps: int, overrides: Sequence[str]
) -> Overhead:
    """On each rank the same; SimCLR, in float32, with timm's smallest ResNet."""
    settings = [
        "backbone={name: timm, model: test_resnet}",
        f"data.num_train={2 * batch_size}",
        f"train.batch_size={batch_size}",
        *overrides,
    ]
    with held_by_first(world, lambda: begin(place)) as folder:
        ours, plain = (make(folder, "simclr", settings, world) for _ in range(2))
    for t in (ours, plain):
        t.method.float()
    batch = next(iter(ours.loader.epoch(0)))
    seconds, parts = measured_steps(ours, batch, steps)
    best, silent = ceiling(plain, batch, steps)
    shares = {name: value / seconds for name, value in parts.items()}
    return Overhead(
        world.size, batch_size, 1e3 * seconds, 1e3 * best,
        reduction=min(1.0, max(0.0, best - silent) / seconds), **shares,
    )  # fmt: skip


def overheads(
    ranks: Sequence[int], batches: Sequence[int], steps: int, overrides: Sequence[str]
) -> Iterator[Overhead]:
    """For each number of processes and each batch."""
    for size in ranks:
        for batch in batches:
            with TemporaryDirectory() as name:
                place = Path(name)
                found, *_ = on_ranks(
                    lambda w, b=batch, p=place: measure(w, p, b, steps, overrides), size
                )
            if isinstance(found, BaseException):
                raise found
            yield found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="of the recipe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for found in overheads(options.ranks, options.batch, options.steps, options.overrides):
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
