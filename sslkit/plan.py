"""The dry run: everything is built, one step is taken, nothing is kept."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engine.display import Display
from .engine.step import train_step
from .errors import TrainingError
from .experiment import build, check, resolve
from .interfaces import Progress
from .recipe import dump_resolved, find_recipe, load_recipe, recipe_hash
from .tracking.folder import RunFolder

_CURVE_POINTS = 5


def make_plan(recipe: str | Path, overrides: Sequence[str], display: Display) -> dict[str, Any]:
    """Builds a recipe, takes one step on its first batch and describes what a run would do.

    Leaves no run folder and tells no tracker. Raises what a run would raise before its second
    step."""
    wanted = resolve(load_recipe(find_recipe(recipe), overrides))
    facts = check(wanted)
    with (
        tempfile.TemporaryDirectory() as place,
        RunFolder.create(Path(place), wanted.name) as folder,
    ):
        experiment = build(wanted, facts, folder, display)  # the tracker is only started by a log
        training = experiment.training
        parameters = {
            "encoder": sum(p.numel() for p in training.method.encoder.parameters()),
            "trainable": sum(p.numel() for p in training.method.parameters() if p.requires_grad),
            "all": sum(p.numel() for p in training.method.parameters()),
        }
        training.method.train()
        started = time.perf_counter()
        batch = next(iter(training.loader.epoch(0)))
        training.optimization.set_lr(training.progress)
        output, _ = train_step(training, batch)
        loss = output.loss.item()
        if not math.isfinite(loss):
            raise TrainingError(f"step 1: the loss is {loss}; see the loss and the precision")
        seconds = time.perf_counter() - started
        schedule, peak = training.optimization.schedule, training.optimization.peak_lr
        return {
            "recipe": wanted.name,
            "recipe_hash": recipe_hash(wanted),
            "device": str(training.runtime.device),
            "precision": training.runtime.precision,
            "images": facts.num_images,
            "classes": facts.num_classes,
            "views": [{"size": view.size, "role": view.role} for view in facts.views],
            "batch_size": facts.batch_size,
            "steps_per_epoch": facts.steps_per_epoch,
            "total_steps": facts.total_steps,
            "parameters": parameters,
            "peak_lr": peak,
            "lr_curve": [
                {
                    "step": step,
                    "lr": peak
                    * schedule.factor(Progress(step, facts.total_steps, facts.steps_per_epoch)),
                }
                for step in curve_steps(facts.total_steps)
            ],
            "first_loss": loss,
            "first_step_seconds": seconds,
            "peak_memory_mb": training.runtime.peak_memory_mb(),
            "resolved_recipe": dump_resolved(wanted),
        }


def curve_steps(total: int) -> list[int]:
    """A few steps, first and last included, at which to show the learning rate."""
    last = max(total - 1, 0)
    return sorted({round(last * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)})
