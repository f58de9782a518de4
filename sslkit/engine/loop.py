"""The training loop. It reads straight down and knows no method by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.api import Batch, StepOutput
from sslkit.errors import TrainingError

from .alike import refuse_unlike_ranks
from .failure import explain_step, refuse_odd_state, refuse_single_image
from .loss_meter import NotFiniteError
from .peak_memory import peak_memory_mb
from .signals import StopSignals
from .step import train_step
from .training import Training


def save(t: Training) -> Path:
    """Writes a checkpoint of the current step, on rank 0, or begins to (`finish_saving`). Raises
    TrainingError where the state is not finite, or not the same on all ranks: what is kept is good
    to go on from."""
    with t.meter.paused():
        refuse_odd_state(t)
        refuse_unlike_ranks(t)
        with t.compute.world.watching("to bring the state together"):
            state = t.state_dict()
        path = t.compute.world.once(lambda: _write(t, state))
        t.saved_step = t.progress.step
    return path


def finish_saving(t: Training) -> None:
    """Returns when what was saved is whole. Raises TrainingError where it could not be written."""
    with t.meter.paused():
        t.compute.world.once(t.output.checkpoints.wait)


def _write(t: Training, state: dict[str, Any]) -> Path:
    path = t.output.checkpoints.save(t.progress.step, state)
    t.saved_step = t.progress.step  # before the others hear of it: they may be gone
    return path


def train(training: Training, stop: StopSignals) -> None:
    """Trains to the end, or until a stop is requested; then a checkpoint of the last step exists.

    Raises TrainingError when loss, gradient, weights or other state are not finite, and PluginError
    where what a component gives in the first step breaks its contract."""
    t = training
    world = t.compute.world
    t.method.train()
    if world.size == 1:  # the others would wait for the batch that a rank gives up
        t.loader.give_up = stop.overdue
    refuse_odd_state(t)
    t.meter.restart_clock()
    lr = t.optimization.set_rules(t.progress)
    compiling_since = time.perf_counter() if t.compute.compiles else None

    while t.progress.step < t.progress.total_steps and not stop.agree(world):
        epoch, start = divmod(t.progress.step, t.progress.steps_per_epoch)
        for batch in t.loader.epoch(epoch, start):
            t.output.callbacks.on_batch(t, batch)

            lr = t.optimization.set_rules(t.progress)
            log_due = t.pace.logs(t.progress.next())
            output, probe_metrics = checked_step(t, batch, log=log_due)
            t.progress = t.progress.next()
            t.output.display.advance(t.progress.step)
            if t.progress.step == t.began_at + 2:  # the first begins with the weights of rank 0
                refuse_unlike_ranks(t)
            if compiling_since is not None:
                log_compilation(t, compiling_since, output.loss)
                compiling_since = None

            done, save_due = t.progress.step == t.progress.total_steps, t.pace.saves(t.progress)
            if log_due or save_due:
                check_steps(t)
            if log_due:
                log_training(t, lr, {**output.metrics, **probe_metrics})
            if save_due:
                save(t)
            if stop.agree(world) or done:
                break

        if t.progress.step % t.progress.steps_per_epoch == 0 and not stop.agree(world):
            finish_epoch(t, stop)

    # Here and not in the loop: a signal may come at any moment, also while an epoch is evaluated.
    if stop.agree(world) and t.saved_step != t.progress.step:
        check_steps(t)
        save(t)
    finish_saving(t)


def checked_step(
    t: Training, batch: Batch, *, log: bool = False
) -> tuple[StepOutput, Mapping[str, Tensor | float]]:
    """`train_step`, whose numbers that are not finite become a TrainingError with the reason, and
    batch statistics of a single image a RecipeError."""
    try:
        return train_step(t, batch, log=log)
    except NotFiniteError as found:
        raise explain_step(t, found, batch) from None
    except ValueError as error:
        refuse_single_image(t, error)
        raise


def check_steps(t: Training) -> None:
    """Raises TrainingError where a step since the last call was not finite. Waits for the
    device."""
    try:
        t.meter.check(t.progress.step, t.optimization.overflows)
    except NotFiniteError as found:
        raise explain_step(t, found, None) from None


def finish_epoch(t: Training, stop: StopSignals) -> None:
    """Saves, then runs the protocols that are due. The last epoch's are left to the end of the
    run, which adds the baselines."""
    if t.progress.step == t.progress.total_steps:
        return
    epoch = t.progress.epochs_done
    due = t.pace.saves_epoch(epoch) or t.evaluation.is_due(epoch)
    if due and t.saved_step != t.progress.step:
        save(t)
    evaluate_epoch(t, epoch, stop)


def evaluate_epoch(t: Training, epoch: int, stop: StopSignals) -> None:
    """Runs the protocols that are due after `epoch` epochs and logs what they found. The step has
    its checkpoint already, so that a stop cuts them off; a resume runs them again.

    Raises TrainingError where a protocol finds that training should end."""
    if not t.evaluation.is_due(epoch):
        return
    finish_saving(t)
    with t.compute.eager():
        t.evaluating = True
        found = t.evaluation.run(epoch, t.progress.step, stop)
        t.evaluating = False
    metrics = found.logged
    t.output.log.log(metrics, t.progress.step)
    t.output.display.metrics(metrics, t.progress.step)
    log_numbers(t, t.output.callbacks.on_evaluation(t, metrics))
    for protocol, warning in found.warnings.items():
        t.output.display.message(f"warning: epoch {epoch}: {protocol}: {warning}")
    for protocol, reason in found.stops.items():
        raise TrainingError(f"epoch {epoch}: stopped by {protocol}: {reason}. {_way_on(t)}")
    t.meter.restart_clock()
    t.loader.wait_s = 0.0


def log_training(t: Training, lr: float, step_metrics: Mapping[str, Tensor | float]) -> None:
    """Logs the mean loss since the last log step and the metrics of this step."""
    loss, speed, seconds = t.meter.flush()
    with torch.no_grad():
        read = {f"train/{name}": float(value) for name, value in step_metrics.items()}
    metrics = {
        "train/loss": loss,
        "train/lr": lr,
        "train/grad_norm": float(t.meter.last_norm),
        "train/epoch": t.progress.epoch,
        **read,
        **{f"train/{name}": value for name, value in t.optimization.metrics().items()},
        **scheduled_metrics(t),
        **t.output.callbacks.take_numbers(),
        "perf/images_per_second": speed,
        "perf/data_wait_fraction": min(t.loader.wait_s / seconds, 1.0),
        "perf/peak_memory_mb": peak_memory_mb(t.compute.device),
    }
    t.loader.wait_s = 0.0
    t.output.log.log(metrics, t.progress.step)
    t.output.display.metrics(metrics, t.progress.step)
    log_numbers(t, t.output.callbacks.on_step(t, metrics))


def log_numbers(t: Training, numbers: Mapping[str, float]) -> None:
    """Logs what callbacks returned, if anything."""
    if numbers:
        t.output.log.log(numbers, t.progress.step)


def scheduled_metrics(t: Training) -> dict[str, float]:
    """The numbers that follow a schedule, as they were in the step just taken."""
    taken = t.progress.previous()
    return {f"train/{name}": number.at(taken) for name, number in t.pace.scheduled.items()}


def log_compilation(t: Training, since: float, loss: Tensor) -> None:
    """Logs how long the first step took, in which everything is compiled, and leaves it out of the
    measured speed."""
    loss.item()  # waits for the device
    seconds = time.perf_counter() - since
    t.output.display.message(f"compiled: the first step took {seconds:.1f} s")
    t.output.log.log({"perf/first_step_seconds": seconds}, t.progress.step)
    t.meter.restart_clock()
    t.loader.wait_s = 0.0


def _way_on(t: Training) -> str:
    saved = t.output.checkpoints.paths()[-1]
    return (
        f"Saved in {saved}; mend the cause and start a new run, or go on all the same: "
        f"sslkit run --resume {t.output.run.run_dir} (to the next evaluation)"
    )
