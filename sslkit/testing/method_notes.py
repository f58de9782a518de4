"""What is worth knowing of a method beside the laws: whether it learns, and what a step costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sslkit.api import Method
from sslkit.engine.training import Training
from sslkit.errors import SSLKitError
from sslkit.nn.functional import normalize
from sslkit.recipe import load_recipe

from .method_bench import MethodBench
from .small_runs import SmallRuns, batches, take_steps
from .subject import SMALL_RECIPE

_EPOCHS = 10
_PAIRS = 7


def loss_over_time(bench: MethodBench) -> str:
    """How the loss of a short training goes, and whether images are kept apart then."""
    t = bench.runs.training(epochs=_EPOCHS)
    losses = take_steps(t, _EPOCHS * t.progress.steps_per_epoch).losses
    part = max(len(losses) // 10, 1)
    first, last = (statistics.fmean(each) for each in (losses[:part], losses[-part:]))
    batch = next(batches(bench.runs.training(epochs=_EPOCHS)))
    with torch.no_grad():
        embeddings = bench.embed(t, batch)
    spreads = [f"{n} {spread(v):.2f}" for n, v in embeddings.items() if is_watched(t.method, n, v)]
    return (
        f"in {len(losses)} steps the loss goes from {first:.4g} to {last:.4g}; the spread of "
        f"embeddings, 0 in a collapse and 1 at most, is then {', '.join(spreads) or 'not watched'}"
    )


def is_watched(method: Method, name: str, value: Tensor) -> bool:
    """Whether an entry of `embed` is one by which a collapse is seen."""
    named: Mapping[str, object] | None = method.must_not_collapse
    chosen = name != "features" if named is None else name in named
    return chosen and value.is_floating_point() and value.ndim > 1


def spread(values: Tensor) -> float:
    """How far the unit vectors of images lie apart: the root of their mean squared distance from
    their mean, 0 where all are equal, 1 where they are spread evenly. values: (B, ...)."""
    unit = normalize(values.flatten(1).double())
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())


def cost_of_a_step(bench: MethodBench) -> Iterator[str]:
    """Processor time beside that of the method of the kit's own recipe, in pairs; nothing where
    that one does not take these views."""
    reference = SmallRuns(bench.subject)
    usual = load_recipe(SMALL_RECIPE).method
    reference.recipe = reference.recipe.model_copy(update={"method": usual})
    try:
        mine, theirs = bench.runs.training(), reference.training()
        take_steps(mine, 2), take_steps(theirs, 2)
    except (SSLKitError, ValueError, RuntimeError):
        return
    ratios = [_seconds(mine) / _seconds(theirs) for _ in range(_PAIRS)]
    yield (
        f"a step takes {statistics.median(ratios):.2f} of the processor time of one of "
        f"{usual.name} on the same data, views and backbone ({min(ratios):.2f} to "
        f"{max(ratios):.2f}, n = {_PAIRS} pairs)"
    )


def _seconds(t: Training) -> float:
    start = time.process_time()
    take_steps(t, 1, log=False)
    return time.process_time() - start
