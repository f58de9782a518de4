"""What has to hold on a GPU and cannot be tested without one. Each check says whether it passed;
on a CPU they run too, so that they are known to work."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sslkit.engine.loop import save, train
from sslkit.engine.signals import StopSignals
from sslkit.randomness import SampleRandom
from sslkit.recipe import Recipe
from sslkit.runs.metrics_file import read_lines

from .arms import Unavailable
from .cases import Mode, make_recipe
from .options import Options
from .ours import Clock, build_experiment, scratch
from .results import ArmResult, Group
from .steps import cases_for, release

_TOLERANCES = {"fp32": 1e-5, "bf16": 1e-3}


def run_checks(options: Options) -> Iterator[Group]:
    """Random bits, exact resume, finite half precisions, eager against compiled and graphed."""
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "random bits equal those of the CPU": partial(_same_bits, options.device),
        "deterministic resume is exact to the bit": partial(_exact_resume, options),
        "bf16 stays finite": partial(_finite, options, "bf16"),
        "fp16 stays finite": partial(_finite, options, "fp16"),
        "eager and compiled: same first loss": partial(_agrees, options, "compiled", 1),
        "eager and graphed: same losses": partial(_agrees, options, "graphed", 5),
    }
    results = []
    for name, check in checks.items():
        result = ArmResult(name, 1.0, "checks")
        try:
            result.facts = check()
        except Unavailable as reason:
            result.unavailable = str(reason)
        results.append(result)
        release()
    yield Group("checks", f"Checks on {options.device.type}", results)


def _same_bits(device: torch.device) -> dict[str, Any]:
    indices = torch.tensor([0, 1, 2, 49_999, 2**31, 2**40 + 5])

    def draws(where: torch.device) -> list[Tensor]:
        random = SampleRandom(7, "augment/view/1", 3, indices.to(where))
        prepared = random.prepare({"words": 9, "more": 4})
        return [
            random.bits("words", 9).cpu(),
            prepared.bits("words", 9).cpu(),
            prepared.bits("more", 4).cpu(),
            random.uniform("unit", 5).cpu(),
            random.integers("integers", 3, 1000).cpu(),
            random.permutation("order", 4).cpu(),
        ]

    pairs = list(zip(draws(torch.device("cpu")), draws(device), strict=True))
    return {"passed": all(torch.equal(a, b) for a, b in pairs), "draws": len(pairs)}


def _exact_resume(options: Options) -> dict[str, Any]:
    """Six steps at once, against three, a checkpoint on the disk, and three more."""
    fields = {"precision": "bf16", "max_steps": 6, "deterministic": "true"}
    try:
        whole, _ = _train(options, fields)
        resumed, _ = _train(options, fields, restart_after=3)
    finally:
        torch.use_deterministic_algorithms(False)
    different = [name for name, value in whole.items() if not torch.equal(value, resumed[name])]
    return {"passed": not different, "tensors": len(whole), "different": different[:5]}


def _finite(options: Options, precision: str) -> dict[str, Any]:
    state, loss = _train(options, {"precision": precision, "max_steps": 20})
    finite = all(bool(value.isfinite().all()) for value in state.values())
    return {"passed": finite and math.isfinite(loss), "loss": loss, "steps": 20}


def _agrees(options: Options, mode: Mode, steps: int) -> dict[str, Any]:
    """The loss of the last of so many steps, against the eager run's. The first step differs by
    rounding only; later ones by what training makes of it, ten times as much being allowed."""
    if options.tiny:
        raise Unavailable("left out at tiny sizes: it compiles")
    found: dict[str, Any] = {"passed": True}
    for precision, tolerance in _TOLERANCES.items():
        limit = tolerance * (1 if steps == 1 else 10)
        fields = {"precision": precision, "max_steps": steps}
        _, eager = _train(options, fields)
        _, other = _train(options, fields, mode=mode)
        found[f"{precision}_relative_difference"] = abs(other - eager) / abs(eager)
        found["passed"] &= abs(other - eager) <= limit * abs(eager)
    return found


def _train(
    options: Options,
    fields: dict[str, Any],
    *,
    mode: Mode = "eager",
    restart_after: int | None = None,
) -> tuple[dict[str, Tensor], float]:
    """(the state of the method, the last loss) of a short real run with these fields of `train`;
    with `restart_after`, continued from a checkpoint by a second experiment."""
    known = cases_for(options)[0]
    case = replace(
        known, batch_size=min(64, known.batch_size), num_images=min(1024, known.num_images)
    )
    runs_dir = scratch()
    further = ["train.log_every_steps=1", *(f"train.{k}={v}" for k, v in fields.items())]
    images = case.images(options.data_dir)
    recipe = make_recipe(case, "same settings", images, runs_dir, options, mode, further)
    try:
        state = None if restart_after is None else _checkpoint(recipe, restart_after)
        experiment = build_experiment(recipe)
        training = experiment.training
        if state is not None:
            training.load_state_dict(state)
        with experiment.folder, experiment.open_log():
            train(training, StopSignals())
        losses = [line.metrics["train/loss"] for line in read_lines(experiment.folder.metrics)
                  if "train/loss" in line.metrics]  # fmt: skip
        return {k: v.detach().cpu() for k, v in training.method.state_dict().items()}, losses[-1]
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)


def _checkpoint(recipe: Recipe, steps: int) -> dict[str, Any]:
    """The checkpoint of a run that was stopped after so many steps, read from the disk."""
    experiment = build_experiment(recipe)
    training = experiment.training
    clock = Clock(training, steps - 1, lead_steps=1)
    training.output.display = clock
    with experiment.folder:
        train(training, clock.begin())
        save(training)
        state, damaged = training.output.checkpoints.load_newest()
    if state is None or damaged:
        raise AssertionError(f"the checkpoint cannot be read: {damaged}")
    return state
