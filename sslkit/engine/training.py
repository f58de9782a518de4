"""What training consists of, and what it needs of data, tracking and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from sslkit.api import Batch, Method, Progress, RunView, ScheduledNumber
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.endings import FailureRecord

from .callbacks import Callbacks
from .contract import Contract
from .display import Display
from .loss_meter import LossMeter
from .online_probe import OnlineProbe
from .optimization import Optimization
from .runtime import Runtime
from .state_check import StateCheck


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
    callbacks: Callbacks
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
    scheduled: Mapping[str, ScheduledNumber] = field(default_factory=dict)
    """Name in the log -> each number of the recipe that follows a schedule of its own."""
    starts_from: str | None = None
    """What the backbone starts from; None for random weights."""
    keep_failure: Callable[[FailureRecord], object] = lambda record: None
    """Writes the record of a step that was not finite into the run folder."""
    meter: LossMeter = field(init=False)
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
        self.meter = LossMeter(self.runtime.world)
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
