"""What training consists of, and what it needs of data, tracking and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from sslkit.api import Batch, Method, Progress, RunView, ScheduledNumber
from sslkit.nn.compute import Compute
from sslkit.parallel.division import Division
from sslkit.parallel.sharding import gathered, scattered
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.folder import RunFolder

from .callbacks import Callbacks
from .contract import Contract
from .display import Display
from .embedder import Embedder
from .loss_meter import LossMeter
from .not_finite import StateCheck
from .online_probe import OnlineProbe
from .optimization import Optimization
from .signals import StopSignals


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
    """In place of a log, before a run begins and on the ranks that do not write one."""

    run_id = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_system(self, metrics: Mapping[str, float]) -> None:
        pass

    def artifact(self, path: Path | str, folder: str = "") -> None:
        pass

    def finish(self, status: Literal["finished", "failed", "killed"]) -> bool:
        return True

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Evaluation(Protocol):
    """The evaluators of a run on its way."""

    def is_due(self, epoch: int) -> bool:
        """Whether one of them is due when so many epochs are done."""

    def run(self, epoch: int, step: int, stop: StopSignals) -> Findings:
        """Runs those that are due then, at the step that ends the epoch, on all ranks together.
        Raises KeyboardInterrupt on all of them where one is asked to stop."""


@dataclass(frozen=True)
class Pace:
    """When things happen, and what changes over the run."""

    log_every_steps: int
    checkpoint_every_steps: int | None
    checkpoint_every_epochs: int
    scheduled: Mapping[str, ScheduledNumber]
    """Name in the log -> each number of the recipe that follows a schedule of its own."""

    def logs(self, progress: Progress) -> bool:
        """Whether the last step done is logged."""
        step = progress.step
        return step % self.log_every_steps == 0 or step == progress.total_steps

    def saves(self, progress: Progress) -> bool:
        """Whether a checkpoint of the last step done is made."""
        every, step = self.checkpoint_every_steps, progress.step
        return step == progress.total_steps or (every is not None and step % every == 0)

    def saves_epoch(self, epoch: int) -> bool:
        """Whether one is made when so many epochs are done."""
        return epoch % self.checkpoint_every_epochs == 0


@dataclass(frozen=True)
class Learner:
    """What is trained, and what a step needs of it."""

    method: Method
    optimization: Optimization
    probe: OnlineProbe | None
    contract: Contract
    """What components promise each other, checked in the first step."""
    seed: int
    embedder: Embedder
    """How batches pass through the networks of the method."""
    division: Division
    """Which part of a batch passes at a time, and here."""
    starts_from: str | None
    """What the backbone starts from; None for random weights."""

    @property
    def objective_is_divided(self) -> bool:
        """Whether the objective sees this rank's share of a batch in place of all of it."""
        return self.division.size > 1 and self.method.divides_objective

    @property
    def objective_rows(self) -> Sequence[slice]:
        """For each micro-batch, where this rank's piece stands in what the objective sees."""
        if self.objective_is_divided:
            return self.division.pieces()
        return self.division.pieces_in_batch()


@dataclass
class Output:
    """Where the run leaves what it finds, and who is told."""

    run: RunView
    folder: RunFolder
    checkpoints: Checkpoints
    display: Display
    callbacks: Callbacks
    """Empty on all ranks but the first."""
    log: Log = field(default_factory=NoLog)


@dataclass
class Training:
    """Everything that training consists of, made by `sslkit.experiment.build.build`."""

    compute: Compute
    loader: Loader
    learner: Learner
    progress: Progress
    pace: Pace
    evaluation: Evaluation
    output: Output

    state_check: StateCheck = field(init=False)
    meter: LossMeter = field(init=False)
    reads_each_step: bool = field(init=False)
    """Whether loss and gradient are looked at before every step of the optimiser: always on a CPU,
    where it costs nothing."""
    is_replay: bool = field(default=False, init=False)
    """Whether steps are only being repeated, to see where they go wrong."""
    evaluating: bool = field(default=False, init=False)
    """Whether evaluators are at work."""
    began_at: int = field(default=0, init=False)
    """The step that this process began at."""
    saved_step: int | None = field(default=None, init=False)
    """The step of the newest checkpoint."""

    def __post_init__(self) -> None:
        self.state_check = StateCheck(self.method, self.optimization)
        self.meter = LossMeter(self.compute.world)
        self.reads_each_step = self.compute.device.type == "cpu"

    @property
    def run(self) -> RunView:
        """The run as plugins see it."""
        return self.output.run

    @property
    def seed(self) -> int:
        """The seed of the recipe."""
        return self.learner.seed

    @property
    def method(self) -> Method:
        """What is trained."""
        return self.learner.method

    @property
    def optimization(self) -> Optimization:
        """What trains it."""
        return self.learner.optimization

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on; the rest is a function of the step's number.
        With several ranks all call this together: what lies in parts is brought to rank 0."""
        here = self.compute.world.is_first
        return {
            "method": gathered(self.method.state_dict(), keep=here),
            "optimization": self.optimization.state_dict(keep=here),
            "probe": self.learner.probe.state_dict() if self.learner.probe else None,
            "meter": self.meter.state_dict(),
            "steps_per_epoch": self.progress.steps_per_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a checkpoint."""
        self.method.load_state_dict(scattered(state["method"], self.method.state_dict()))
        self.optimization.load_state_dict(state["optimization"])
        if self.learner.probe and state["probe"] is not None:
            self.learner.probe.load_state_dict(state["probe"])
        self.meter.load_state_dict(state["meter"], self.compute.device)
        self.progress = replace(self.progress, step=state["step"])
        self.saved_step = self.began_at = state["step"]
