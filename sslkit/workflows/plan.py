"""What a run would do: everything is built, a few steps are measured, nothing is kept."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sslkit.api import Batch, Progress
from sslkit.data.evaluation_images import calibration_rows
from sslkit.engine.display import Display
from sslkit.engine.failure import refuse_odd_state
from sslkit.engine.loop import check_steps, checked_step
from sslkit.engine.peak_memory import peak_memory_mb
from sslkit.engine.training import Training
from sslkit.experiment.build import Experiment, build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.nn.batch_norm import has_batch_statistics
from sslkit.parallel.world import OneProcess
from sslkit.recipe import Recipe, dump_resolved, find_recipe, load_recipe, recipe_hash
from sslkit.recipe.warnings import Advice, find_warnings, network_warnings, plan_facts, statements
from sslkit.runs.folder import RunFolder

_CURVE_POINTS = 61
_COLD_STEPS = 2
"""The first steps, which allocate and compile, are not measured where there are others."""
_MEASURED_STEPS = 6
_LIMIT_S = 30.0
"""No step is begun after this time, once one is measured."""


@dataclass(frozen=True)
class Plan:
    """What a run would do. Times are seconds, sizes MB (10^6 bytes)."""

    recipe: str
    recipe_hash: str
    device: str
    precision: str
    images: int
    classes: int | None
    data: dict[str, Any]
    """Name, sizes of the splits, classes, size of the images, memory."""
    views: list[dict[str, Any]]
    """Size and role of each."""
    batch_size: int
    micro_batch_size: int | None
    steps_per_epoch: int
    total_steps: int
    parameters: dict[str, int]
    facts: dict[str, str | int | float]
    """What components say of themselves, such as negatives an anchor."""
    peak_lr: float
    lr_curve: list[dict[str, float]]
    curves: dict[str, list[dict[str, float]]]
    """The course of each other number that follows a schedule."""
    first_loss: float
    first_step_seconds: float
    time: dict[str, Any] | None
    """The estimate of the whole run; None where it was not measured."""
    peak_memory_mb: float | None
    disk: dict[str, float]
    statements: list[str]
    warnings: list[dict[str, Any]]
    """Path and message of each."""
    resolved_recipe: str

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dict(vars(self))


def make_plan(
    recipe: str | Path, overrides: Sequence[str], display: Display, *, measure: bool = False
) -> Plan:
    """Builds a recipe, takes one step on its first batch and describes what a run would do; with
    `measure` it takes a few more steps and estimates how long the run takes.

    Leaves no run folder and tells no tracker. Raises what a run would raise before its second
    step."""
    wanted = resolve(load_recipe(find_recipe(recipe), overrides))
    facts = check(wanted)
    with (
        tempfile.TemporaryDirectory() as place,
        RunFolder.create(Path(place), wanted.name) as folder,
    ):
        experiment = build(
            wanted, facts, folder, display, OneProcess()
        )  # the tracker is only started by a log
        training = experiment.training
        steps = take_steps(training, _COLD_STEPS + _MEASURED_STEPS if measure else 1)
        warnings = _warnings(wanted, experiment)
        return Plan(
            recipe=wanted.name,
            recipe_hash=recipe_hash(wanted),
            device=str(training.compute.device),
            precision=training.compute.precision,
            images=facts.num_images,
            classes=facts.num_classes,
            data=describe_data(experiment),
            views=[{"size": view.size, "role": view.role} for view in facts.views],
            batch_size=facts.batch_size,
            micro_batch_size=wanted.train.micro_batch_size,
            steps_per_epoch=facts.steps_per_epoch,
            total_steps=facts.total_steps,
            parameters=count_parameters(experiment),
            facts=plan_facts(wanted, facts),
            peak_lr=training.optimization.peak_lr,
            lr_curve=lr_curve(training),
            curves=number_curves(training),
            first_loss=steps.first_loss,
            first_step_seconds=steps.seconds[0],
            time=estimate_time(experiment, steps) if measure else None,
            peak_memory_mb=peak_memory_mb(training.compute.device),
            disk=describe_disk(experiment),
            statements=statements(wanted, training.method, facts.sample.noun),
            warnings=[asdict(warning) for warning in warnings],
            resolved_recipe=dump_resolved(experiment.recipe),
        )


def _warnings(recipe: Recipe, experiment: Experiment) -> list[Advice]:
    return [
        *find_warnings(recipe, experiment.facts),
        *(Advice("data", note) for note in experiment.stores.train.notes),
        *network_warnings(recipe, experiment.method, experiment.facts.sample.noun),
    ]


# --- Measured steps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """The first steps of a run."""

    first_loss: float
    seconds: list[float]
    """What each step took, data and optimiser included."""

    @property
    def warm(self) -> list[float]:
        """Without the cold ones, as far as there are others."""
        return self.seconds[min(_COLD_STEPS, len(self.seconds) - 1) :]


def take_steps(training: Training, number: int) -> Steps:
    """Takes the first steps of the run. Raises what `train` raises in them."""
    training.method.train()
    refuse_odd_state(training)
    seconds: list[float] = []
    first_loss = math.nan
    started = time.perf_counter()
    with closing(_batches(training)) as batches:
        for _ in range(min(number, training.progress.total_steps)):
            begun = time.perf_counter()
            batch = next(batches)
            training.optimization.set_rules(training.progress)
            output, _ = checked_step(training, batch)
            _wait_for(training.compute.device)
            seconds.append(time.perf_counter() - begun)
            if training.progress.step == 0:
                first_loss = output.loss.item()
            training.progress = training.progress.next()
            if len(seconds) > _COLD_STEPS and time.perf_counter() - started > _LIMIT_S:
                break
    check_steps(training)
    refuse_odd_state(training)
    return Steps(first_loss, seconds)


def _batches(training: Training) -> Generator[Batch, None, None]:
    for epoch in count():
        yield from training.loader.epoch(epoch)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# --- What follows ---------------------------------------------------------------------------------


def estimate_time(experiment: Experiment, steps: Steps) -> dict[str, Any]:
    """Seconds of the run: the measured step times the number of steps, and features and batch
    statistics of every evaluation. What evaluators do with the features, checkpoints and start-up
    come on top."""
    facts, encoder = experiment.facts, experiment.method.encoder
    step = median(steps.warm)
    encoded = images_encoded(experiment)
    features = 0.0
    if encoded:
        with experiment.compute.eager():
            features = sum(encoded) * experiment.suite.seconds_per_image(encoder)
    return {
        "step_seconds": step,
        "measured_steps": len(steps.warm),
        "images_per_second": facts.batch_size / step,
        "training_seconds": step * facts.total_steps,
        "evaluations": len(encoded),
        "feature_seconds": features,
        "total_seconds": step * facts.total_steps + features,
    }


def images_encoded(experiment: Experiment) -> list[int]:
    """Images that go through an encoder each time that features are taken: during training, after
    it, and of the untrained encoder. An encoder with BatchNorm gets its statistics before."""
    facts, suite, encoder = experiment.facts, experiment.suite, experiment.method.encoder
    epochs = range(1, math.ceil(facts.total_steps / facts.steps_per_epoch))
    encoded = [suite.images_encoded("trained", epoch, final=False) for epoch in epochs]
    encoded.append(suite.images_encoded("trained", 0, final=True))
    if experiment.no_untrained is None:
        encoded.append(suite.images_encoded("untrained", 0, final=True))
    before = 0
    if has_batch_statistics(encoder):
        before = len(calibration_rows(experiment.stores.train, experiment.recipe.seed))
    return [before + images for images in encoded if images]


def count_parameters(experiment: Experiment) -> dict[str, int]:
    """Numbers of parameters. `other`: trainable ones outside the encoder, such as heads."""
    method = experiment.method
    encoder = {id(parameter) for parameter in method.encoder.parameters()}
    trainable = [p for p in method.parameters() if p.requires_grad]
    return {
        "encoder": sum(p.numel() for p in method.encoder.parameters()),
        "other": sum(p.numel() for p in trainable if id(p) not in encoder),
        "trainable": sum(p.numel() for p in trainable),
        "all": sum(p.numel() for p in method.parameters()),
    }


def describe_data(experiment: Experiment) -> dict[str, Any]:
    """The data, as the run sees it."""
    facts, test = experiment.facts, experiment.stores.test
    resident = experiment.stores.train.resident
    labels = experiment.stores.train.labels
    sizes = labels[labels >= 0].bincount() if labels is not None else None
    return {
        "name": experiment.recipe.data.name,
        "train": facts.num_images,
        "test": len(test) if test is not None else 0,
        "classes": facts.num_classes,
        "images_per_class": [int(sizes.min()), int(sizes.max())] if sizes is not None else None,
        "channels": facts.channels,
        "image_size": list(facts.image_size) if facts.image_size else None,
        "sample": str(facts.sample),
        "noun": facts.sample.noun,
        "in_memory_mb": resident.nbytes / 1e6 if resident is not None else None,
        "left_out_per_epoch": 0 if facts.streamed else facts.num_images % facts.batch_size,
    }


def describe_disk(experiment: Experiment) -> dict[str, float]:
    """MB (10^6 bytes) that checkpoints take, after a step has filled the optimiser's state, and
    that are free where the run folder would be."""
    checkpoint = _bytes_in(experiment.training.state_dict()) / 1e6
    place = Path(experiment.recipe.runs_dir).absolute()
    while not place.exists():
        place = place.parent
    return {
        "checkpoint_mb": checkpoint,
        "checkpoints_mb": checkpoint * (experiment.recipe.train.keep_checkpoints + 1),
        "free_mb": shutil.disk_usage(place).free / 1e6,
    }


def _bytes_in(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(_bytes_in(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(_bytes_in(value) for value in state)
    return 0


def lr_curve(training: Training) -> list[dict[str, float]]:
    """The learning rate over the run, first and last step included."""
    facts, peak = training.progress, training.optimization.peak_lr
    total, per_epoch = facts.total_steps, facts.steps_per_epoch
    factor = training.optimization.schedule.factor
    return [
        {"step": step, "lr": peak * factor(Progress(step, total, per_epoch))}
        for step in curve_steps(total)
    ]


def number_curves(training: Training) -> dict[str, list[dict[str, float]]]:
    """Name -> values over the run, first and last step included, of each number that follows a
    schedule of its own."""
    progress = training.progress
    points = [replace(progress, step=step) for step in curve_steps(progress.total_steps)]
    return {
        name: [{"step": point.step, "value": number.at(point)} for point in points]
        for name, number in training.pace.scheduled.items()
    }


def curve_steps(total: int) -> list[int]:
    """Steps at which to show a curve, first and last included."""
    last = max(total - 1, 0)
    return sorted({round(last * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)})
