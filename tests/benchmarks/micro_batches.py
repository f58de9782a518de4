"""Large batches in parts: memory and time of `train.micro_batch_size` against the whole batch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from .arms import Arm, Run, measure
from .cases import Case, make_recipe
from .memory import extra_peak_mb
from .options import Options
from .ours import TrainRun, scratch
from .results import Group

_FIELD = "micro_batch_size"
_CASE = Case(
    "micro",
    "resnet18 (small stem), 32 px",
    "resnet18",
    32,
    64,
    32,
    10_000,
    steps=1,
    stem="small",
    modes=("eager",),
)


class KeptRun(TrainRun):
    """A run that can be measured again when its rounds are over."""

    def close(self) -> None:
        pass

    def end(self) -> None:
        super().close()


def run_micro_batches(options: Options) -> Iterator[Group]:
    """One group: the whole batch, and a half, a quarter and an eighth of it at a time."""
    case = _CASE
    if options.tiny:
        case = replace(case, model="test_resnet", stem="default", batch_size=8, num_images=64)
    elif options.on_gpu:
        case = replace(case, batch_size=2048, num_images=50_000, steps=4)
    images = case.images(options.data_dir)
    runs_dir = scratch()
    runs: dict[str, KeptRun] = {}

    def setup(name: str, micro: int) -> Run:
        further = [] if micro == case.batch_size else [f"train.{_FIELD}={micro}"]
        recipe = make_recipe(case, "same settings", images, runs_dir, options, further=further)
        runs[name] = KeptRun(recipe, case.steps, case.lead_steps)
        return runs[name]

    arms = []
    for parts in (1, 2) if options.tiny else (1, 2, 4, 8):
        micro = case.batch_size // parts
        name = "whole batch" if parts == 1 else f"{micro} at a time"
        arms.append(
            Arm(name, partial(setup, name, micro), float(case.batch_size * case.steps),
                settings={_FIELD: micro})
        )  # fmt: skip
    try:
        results = measure(arms, options.plan(30.0, min_rounds=4))
        for result in results:
            run = runs[result.name]
            result.extra_memory_mb = extra_peak_mb(run.block, options.device)
            run.end()
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)
    yield Group(
        "micro-batches",
        f"{case.title}, batch {case.batch_size}, in parts",
        results,
        reference="whole batch",
        facts={"batch_size": case.batch_size, "data": images.description},
        note="A ratio of 0.71 is an overhead of 1.4. Memory: views of the batch included.",
    )
