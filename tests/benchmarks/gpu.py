"""Ceilings of the device: what a matrix product, a copy and each encoder reach on it."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch

from .arms import Arm, measure, of_calls
from .cases import Case, make_recipe
from .options import Options
from .ours import ceiling_arm, scratch
from .results import ArmResult, Group
from .steps import cases_for, release


def run_ceilings(options: Options) -> Iterator[Group]:
    """Matrix product and copy, then each encoder's step on synthetic input."""
    yield _device_ceilings(options)
    for case in cases_for(options):
        yield _encoder_ceilings(case, options)
        release()


def _device_ceilings(options: Options) -> Group:
    device, size = options.device, 64 if options.tiny else 8192
    calls = 2 if options.tiny else 20
    num_bytes = 2**16 if options.tiny else 2**31
    product = of_calls(partial(_product, size, device), calls, device)
    copy = of_calls(partial(_copy, num_bytes, device), calls, device)
    arms = [
        Arm(f"matrix product, {size}, bf16", product, calls * 2 * size**3 / 1e12, "TFLOP"),
        Arm("copy, read and written", copy, calls * 2 * num_bytes / 1e9, "GB"),
    ]
    results = measure(arms, options.plan(10.0))
    return Group("ceilings", "What the device can do", _with_speeds(results))


def _encoder_ceilings(case: Case, options: Options) -> Group:
    images, runs_dir = case.images(options.data_dir), scratch()
    make = partial(make_recipe, case, "same settings", images, runs_dir, options)
    work = float(case.batch_size * case.steps)
    arms = [
        Arm(f"ceiling, {mode}", ceiling_arm(partial(make, mode), case.steps), work)
        for mode in case.modes
        if mode != "compiled augmentation"
    ]
    try:
        results = measure(arms, options.plan(10.0, min_rounds=4))
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)
    return Group("ceilings", f"Encoder on synthetic input: {case.title}", _with_speeds(results))


def _with_speeds(results: list[ArmResult]) -> list[ArmResult]:
    """Adds the speed, which for a device that is ours alone means something."""
    for result in results:
        if result.seconds:
            result.facts["per_second"] = result.work / statistics.median(result.seconds)
    return results


def _product(size: int, device: torch.device) -> Callable[[], object]:
    first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in "ab")
    return lambda: first @ second


def _copy(num_bytes: int, device: torch.device) -> Callable[[], object]:
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
