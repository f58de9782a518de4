"""The training loop. It reads straight down and knows no method by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sslkit.api import Batch, Callback, Method, Progress, RunView, StepOutput
from sslkit.errors import TrainingError
from sslkit.run.checkpoint import Checkpoints

from .contract import Contract
from .display import Display
from .failure import explain_step, refuse_odd_state
from .loss_meter import Meter, NotFiniteError
from .online_probe import OnlineProbe
from .optimization import Optimization
from .runtime import Runtime
from .signals import StopSignals
from .state_check import StateCheck
from .step import train_step


class Loader(Protocol):
    """What the loop needs of the data."""

    wait_s: float
    give_up: Callable[[], bool] | None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]: ...

    def indices(self, epoch: int, step: int) -> Tensor: ...


class Log(Protocol):
    """What the loop needs of the tracking."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...


class Findings(Protocol):
    """What the loop needs of an evaluation."""

    @property
    def logged(self) -> Mapping[str, float]: ...

    @property
    def warnings(self) -> Mapping[str, str]: ...

    @property
    def stops(self) -> Mapping[str, str]: ...


class NoLog:
    """Before a run begins."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass


@dataclass
class Training:
    """Everything that training consists of, made by `sslkit.experiment.build.build`."""

    run: RunView
    seed: int
    runtime: Runtime
    loader: Loader
    method: Method
    optimization: Optimization
    probe: OnlineProbe | None
    callbacks: Sequence[Callback]
    checkpoints: Checkpoints
    log: Log
    display: Display
    progress: Progress
    log_every_steps: int
    checkpoint_every_steps: int | None
    checkpoint_every_epochs: int
    micro_batch_size: int | None
    """Images that go through the networks at a time; None: the whole batch."""
    evaluation_due: Callable[[int], bool]
    """Whether a protocol is due when so many epochs are done."""
    evaluate: Callable[[int], Findings]
    """Runs the protocols that are due then."""
    contract: Contract
    """What components promise each other, checked in the first step."""
    state_check: StateCheck
    keep: Callable[[str, object], object] = lambda name, value: None
    """keep(name, value): writes a file of the run folder, as JSON."""
    meter: Meter = field(default_factory=Meter)
    reads_each_step: bool = False
    """Whether loss and gradient are looked at before every step of the optimiser: always on a CPU,
    where it costs nothing."""
    is_replay: bool = False
    """Whether steps are only being repeated, to see where they go wrong."""
    evaluating: bool = False
    """Whether protocols are under way."""
    began_at: int = 0
    """The step that this process began at."""
    saved_step: int | None = None
    """The step of the newest checkpoint."""

    def __post_init__(self) -> None:
        self.reads_each_step |= self.runtime.device.type == "cpu"

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on; the rest is a function of the step's number."""
        return {
            "method": self.method.state_dict(),
            "optimization": self.optimization.state_dict(),
            "probe": self.probe.state_dict() if self.probe else None,
            "meter": self.meter.state_dict(),
            "steps_per_epoch": self.progress.steps_per_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a checkpoint."""
        self.method.load_state_dict(state["method"])
        self.optimization.load_state_dict(state["optimization"])
        if self.probe and state["probe"] is not None:
            self.probe.load_state_dict(state["probe"])
        self.meter.load_state_dict(state["meter"], self.runtime.device)
        self.progress = replace(self.progress, step=state["step"])
        self.saved_step = self.began_at = state["step"]

    def save(self) -> Path:
        """Writes a checkpoint of the current step. Raises TrainingError where the state is not
        finite: what is kept is good to go on from."""
        refuse_odd_state(self)
        path = self.checkpoints.save(self.progress.step, self.state_dict())
        self.saved_step = self.progress.step
        return path


def train(training: Training, stop: StopSignals) -> None:
    """Trains to the end, or until a stop is requested; then a checkpoint of the last step exists.

    Raises TrainingError when loss, gradient, weights or other state are not finite, and PluginError
    where what a component gives in the first step breaks its contract."""
    t = training
    t.method.train()
    t.loader.give_up = stop.overdue
    refuse_odd_state(t)
    t.meter.restart_clock()
    lr = t.optimization.set_lr(t.progress)
    compiling_since = time.perf_counter() if t.runtime.compiles else None

    while t.progress.step < t.progress.total_steps and not stop.requested:
        epoch, start = divmod(t.progress.step, t.progress.steps_per_epoch)
        for batch in t.loader.epoch(epoch, start):
            for callback in t.callbacks:
                callback.on_batch(t.run, batch, t.progress)

            lr = t.optimization.set_lr(t.progress)
            log_due = is_logged(t, t.progress.next())
            output, probe_metrics = checked_step(t, batch, log=log_due)
            t.progress = t.progress.next()
            t.display.advance(t.progress.step)
            if compiling_since is not None:
                log_compilation(t, compiling_since, output.loss)
                compiling_since = None

            step, done = t.progress.step, t.progress.step == t.progress.total_steps
            save_due = done or _divides(t.checkpoint_every_steps, step)
            if log_due or save_due:
                check_steps(t)
            if log_due:
                log_training(t, lr, {**output.metrics, **probe_metrics})
            if save_due:
                t.save()
            if stop.requested or done:
                break

        if t.progress.step % t.progress.steps_per_epoch == 0 and not stop.requested:
            finish_epoch(t, stop)

    # Here and not in the loop: a signal may come at any moment, also while an epoch is evaluated.
    if stop.requested and t.saved_step != t.progress.step:
        check_steps(t)
        t.save()


def checked_step(
    t: Training, batch: Batch, *, log: bool = False
) -> tuple[StepOutput, Mapping[str, Tensor | float]]:
    """`train_step`, whose numbers that are not finite become a TrainingError with the reason."""
    try:
        return train_step(t, batch, log=log)
    except NotFiniteError as found:
        raise explain_step(t, found, batch) from None


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
    if epoch % t.checkpoint_every_epochs == 0 or t.evaluation_due(epoch):
        t.save()
    evaluate_epoch(t, epoch, stop)


def evaluate_epoch(t: Training, epoch: int, stop: StopSignals) -> None:
    """Runs the protocols that are due after `epoch` epochs and logs what they found. The step has
    its checkpoint already, so that a stop cuts them off; a resume runs them again.

    Raises TrainingError where a protocol finds that training should end."""
    if not t.evaluation_due(epoch):
        return
    with t.runtime.eager(), stop.stopping_at_once():
        t.evaluating = True
        found = t.evaluate(epoch)
        t.evaluating = False
    metrics = found.logged
    t.log.log(metrics, t.progress.step)
    t.display.metrics(metrics, t.progress.step)
    for callback in t.callbacks:
        callback.on_evaluation(t.run, metrics, t.progress)
    for protocol, warning in found.warnings.items():
        t.display.message(f"warning: epoch {epoch}: {protocol}: {warning}")
    for protocol, reason in found.stops.items():
        raise TrainingError(f"epoch {epoch}: stopped by {protocol}: {reason}. {_way_on(t)}")
    t.meter.restart_clock()
    t.loader.wait_s = 0.0


def is_logged(t: Training, progress: Progress) -> bool:
    """Whether the last step done is logged."""
    step = progress.step
    return step % t.log_every_steps == 0 or step == progress.total_steps


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
        "perf/images_per_second": speed,
        "perf/data_wait_fraction": min(t.loader.wait_s / seconds, 1.0),
        "perf/peak_memory_mb": t.runtime.peak_memory_mb(),
    }
    t.loader.wait_s = 0.0
    t.log.log(metrics, t.progress.step)
    t.display.metrics(metrics, t.progress.step)
    for callback in t.callbacks:
        callback.on_step(t.run, metrics, t.progress)


def log_compilation(t: Training, since: float, loss: Tensor) -> None:
    """Logs how long the first step took, in which everything is compiled, and leaves it out of the
    measured speed."""
    loss.item()  # waits for the device
    seconds = time.perf_counter() - since
    t.display.message(f"compiled: the first step took {seconds:.1f} s")
    t.log.log({"perf/first_step_seconds": seconds}, t.progress.step)
    t.meter.restart_clock()
    t.loader.wait_s = 0.0


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _way_on(t: Training) -> str:
    saved = t.checkpoints.paths()[-1]
    return (
        f"Saved in {saved}; mend the cause and start a new run, or go on all the same: "
        f"sslkit run --resume {t.run.run_dir} (to the next evaluation)"
    )
