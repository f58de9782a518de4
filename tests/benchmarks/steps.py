"""Whole training steps: ours eager and compiled, lightly's parts, a plain loop, the ceiling."""

from __future__ import annotations

import gc
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from .arms import Arm, Run, measure
from .cases import CPU_CASES, GPU_CASES, TINY_CASES, Case, Table, case_named, make_recipe
from .compilation import counted
from .images import Images
from .options import Options
from .ours import ceiling_arm, scratch, training_arm
from .peers import LoopSettings, PlainRun, Transform, lightly_parts, plain_parts
from .results import ArmResult, Group

_NOTES = {
    "same settings": "All arms: bf16 autocast, channels_last, one forward pass over both views, "
    "the same views, batch, networks and SGD.",
    "as shipped": "Ours: bf16, channels_last, bicubic crops, online probe. Peers: float32, "
    "channels_first, one forward pass per view, as in lightly's examples.",
}


def cases_for(options: Options) -> tuple[Case, ...]:
    """The steps of a machine, or those that were asked for."""
    known = TINY_CASES if options.tiny else GPU_CASES if options.on_gpu else CPU_CASES
    if options.cases:
        return tuple(case_named(known, name) for name in options.cases)
    return known


def run_steps(options: Options) -> Iterator[Group]:
    """A group for each case and table."""
    for case in cases_for(options):
        images = case.images(options.data_dir)
        for table in options.tables or case.tables:
            plan = options.plan(30.0, min_rounds=case.min_rounds)
            runs_dir = scratch()
            try:
                shared = (case, table, images, runs_dir, options)
                arms = [*our_arms(*shared), *peer_arms(*shared)]
                results = measure(arms, plan)
            finally:
                shutil.rmtree(runs_dir, ignore_errors=True)
            yield Group(
                part="steps",
                title=f"{case.title}: {table}",
                arms=results,
                reference=next((arm.name for arm in arms if arm.name.startswith("lightly")), None),
                ceiling=_ceiling(results),
                facts={"case": case.name, "table": table, "data": images.description},
                note=_NOTES[table],
            )
            release()


def release() -> None:
    """Lets go of networks and of compiled code: the next group compiles under its own limit of
    recompilations, and finds its memory free."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def our_arms(
    case: Case, table: Table, images: Images, runs_dir: Path, options: Options
) -> Iterator[Arm]:
    """The ceilings, and `train` in each mode of the case."""
    work = float(case.batch_size * case.steps)
    for mode in case.modes:
        recipe = partial(make_recipe, case, table, images, runs_dir, options, mode)
        setups = {"ours": training_arm(recipe, case.steps, case.lead_steps)}
        if table == "same settings" and mode != "compiled augmentation":  # it has none
            setups = {"ceiling": ceiling_arm(recipe, case.steps), **setups}
        told = {"mode": mode, "loader_threads": options.loader_threads}
        for name, setup in setups.items():
            setup = setup if mode == "eager" else counted(setup)
            yield Arm(f"{name}, {mode}", setup, work, warmups=int(mode != "eager"), settings=told)


def peer_arms(
    case: Case, table: Table, images: Images, runs_dir: Path, options: Options
) -> Iterator[Arm]:
    """lightly's parts and torchvision's in a plain loop, for each number of workers."""
    same = table == "same settings"
    recipe = partial(make_recipe, case, table, images, runs_dir, options)

    def setup(
        find: Callable[[Case], tuple[Transform, torch.nn.Module]], settings: LoopSettings
    ) -> Run:
        return PlainRun(case, recipe, images, find(case), settings)

    for workers in options.workers:
        settings = LoopSettings(
            workers, "bf16" if same else "fp32", same, joint_forward=same, device=options.device
        )
        told = {"precision": settings.precision, "channels_last": same, "workers": workers}
        for name, find in (("lightly", lightly_parts), ("plain PIL", plain_parts)):
            title = name if len(options.workers) == 1 else f"{name}, {workers} workers"
            work = float(case.batch_size * case.steps)
            yield Arm(title, partial(setup, find, settings), work, warmups=0, settings=told)


def _ceiling(results: Sequence[ArmResult]) -> str | None:
    """The faster of the ceilings: nothing with this encoder ran faster."""
    ceilings = [arm for arm in results if arm.name.startswith("ceiling") and arm.seconds]
    fastest = min(ceilings, key=lambda arm: statistics.median(arm.seconds), default=None)
    return None if fastest is None else fastest.name
