"""What a run would do: everything is built, a few steps are measured, nothing is kept."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from sslkit.api import Progress
from sslkit.api.evaluation_inputs import EVALUATION_BATCH
from sslkit.data.evaluation_images import calibration_rows
from sslkit.engine.display import Display
from sslkit.engine.peak_memory import peak_memory_mb
from sslkit.engine.training import Training
from sslkit.experiment.build import Experiment, build, make_division
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.nn.batch_norm import has_batch_statistics
from sslkit.parallel.imagined import ImaginedRank
from sslkit.parallel.world import OneProcess, World
from sslkit.recipe import Recipe, dump_resolved, find_recipe, load_recipe, recipe_hash
from sslkit.recipe.warnings import Advice, find_warnings, network_warnings, plan_facts, statements
from sslkit.runs.folder import RunFolder

from .plan_ranks import (
    SharedBatch,
    bearing_single_images,
    describe_shared,
    share_statements,
    share_warnings,
)
from .plan_steps import MEASURED_STEPS, Steps, first_batches, take_steps

_CURVE_POINTS = 61


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
    first_loss: float | None
    """None with several processes: it needs all of them."""
    first_step_seconds: float
    time: dict[str, Any] | None
    """The estimate of the whole run; None where it was not measured. With several processes the
    step of one, without what they send."""
    shared: SharedBatch | None
    """What each of several processes does; None for one."""
    peak_memory_mb: float | None
    disk: dict[str, float]
    statements: list[str]
    warnings: list[dict[str, Any]]
    """Path and message of each."""
    resolved_recipe: str

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "shared": None if self.shared is None else asdict(self.shared)}


def make_plan(
    recipe: str | Path,
    overrides: Sequence[str],
    display: Display,
    *,
    measure: bool = False,
    processes: int = 1,
) -> Plan:
    """Builds a recipe, takes one step on its first batch and describes what a run would do; with
    `measure` it takes a few more steps and estimates how long the run takes. processes: that share
    the batch; none is started, and what is measured is the work of one.

    Leaves no run folder and tells no tracker. Raises what a run would raise before its second
    step."""
    wanted = resolve(load_recipe(find_recipe(recipe), overrides))
    world = ImaginedRank(processes) if processes > 1 else OneProcess()
    make_division(wanted, world)  # refuses before anything is read
    facts = check(wanted)
    with (
        tempfile.TemporaryDirectory() as place,
        RunFolder.create(Path(place), wanted.name) as folder,
    ):
        # The tracker is only started by a log.
        experiment = build(wanted, facts, folder, display, world)
        training = experiment.training
        with bearing_single_images(training):
            steps = take_steps(training, MEASURED_STEPS if measure else 1)
            memory = peak_memory_mb(training.compute.device)
            shared = share_batch(training, world, sharded=wanted.train.parallel == "fsdp")
        return describe(wanted, experiment, Observed(steps, measure, memory, shared))


@dataclass(frozen=True)
class Observed:
    """What the first steps have shown."""

    steps: Steps
    measured: bool
    """Whether they are enough for an estimate."""
    memory_mb: float
    shared: SharedBatch | None


def describe(recipe: Recipe, experiment: Experiment, seen: Observed) -> Plan:
    """The plan of what was built. recipe: as it was resolved before."""
    facts, training = experiment.facts, experiment.training
    return Plan(
        recipe=recipe.name,
        recipe_hash=recipe_hash(recipe),
        device=str(training.compute.device),
        precision=training.compute.precision,
        images=facts.num_images,
        classes=facts.num_classes,
        data=describe_data(experiment),
        views=[{"size": view.size, "role": view.role} for view in facts.views],
        batch_size=facts.batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        steps_per_epoch=facts.steps_per_epoch,
        total_steps=facts.total_steps,
        parameters=count_parameters(experiment),
        facts=plan_facts(recipe, facts),
        peak_lr=training.optimization.peak_lr,
        lr_curve=lr_curve(training),
        curves=number_curves(training),
        first_loss=None if seen.shared else seen.steps.first_loss,
        first_step_seconds=seen.steps.seconds[0],
        time=estimate_time(experiment, seen.steps) if seen.measured else None,
        shared=seen.shared,
        peak_memory_mb=seen.memory_mb,
        disk=describe_disk(experiment),
        statements=_statements(recipe, experiment),
        warnings=[asdict(warning) for warning in _warnings(recipe, experiment)],
        resolved_recipe=dump_resolved(experiment.recipe),
    )


def _warnings(recipe: Recipe, experiment: Experiment) -> list[Advice]:
    noun = experiment.facts.sample.noun
    return [
        *find_warnings(recipe, experiment.facts),
        *(Advice("data", note) for note in experiment.stores.train.notes),
        *network_warnings(recipe, experiment.method, noun),
        *share_warnings(experiment.training.learner.division, experiment.method, noun),
    ]


def _statements(recipe: Recipe, experiment: Experiment) -> list[str]:
    return [
        *statements(recipe, experiment.method, experiment.facts.sample.noun),
        *share_statements(experiment.training.learner.division),
    ]


def share_batch(training: Training, world: World, *, sharded: bool) -> SharedBatch | None:
    """What each of several processes does in a step; None for one. sharded: whether each of them
    keeps a part of the weights alone."""
    if not isinstance(world, ImaginedRank):
        return None
    with closing(first_batches(training)) as batches:
        return describe_shared(training, world, next(batches), sharded=sharded)


# --- What follows ---------------------------------------------------------------------------------


def estimate_time(experiment: Experiment, steps: Steps) -> dict[str, Any]:
    """Seconds of the run: the measured step times the number of steps, and features and batch
    statistics of every evaluation, which several processes share. What evaluators do with the
    features, on the first process alone, checkpoints and start-up come on top."""
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
    """Images that go through an encoder, one after the other, each time that features are taken:
    during training, after it, and of the untrained encoder. An encoder with BatchNorm gets its
    statistics before."""
    facts, suite, encoder = experiment.facts, experiment.suite, experiment.method.encoder
    epochs = range(1, math.ceil(facts.total_steps / facts.steps_per_epoch))
    encoded = [suite.images_encoded("trained", epoch, final=False) for epoch in epochs]
    encoded.append(suite.images_encoded("trained", 0, final=True))
    if experiment.no_untrained is None:
        encoded.append(suite.images_encoded("untrained", 0, final=True))
    before = 0
    if has_batch_statistics(encoder):
        rows = calibration_rows(experiment.stores.train, experiment.recipe.seed)
        before = suite.work.one_after_another(len(rows), EVALUATION_BATCH)
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
