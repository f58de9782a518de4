"""Trackers and callbacks, which watch a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sslkit.run_files import RunFiles

from .component import Component
from .data import Batch
from .method import Method
from .schedules import Progress


@dataclass(frozen=True)
class RunView:
    """What trackers and callbacks know of a run."""

    run_dir: Path
    run_name: str
    """`<recipe name>-s<seed>`."""
    params: Mapping[str, str | int | float | bool | None]
    """The resolved recipe, flattened: "method.loss.temperature" -> 0.5."""
    tags: Mapping[str, str]

    @property
    def files(self) -> RunFiles:
        """Where the files of the run lie."""
        return RunFiles(self.run_dir)


@dataclass(frozen=True)
class MetricPoint:
    """One logged value."""

    key: str
    value: float
    step: int
    time_ms: int
    """Milliseconds since 1970."""


class Tracker(Component, ABC):
    """Mirrors the run folder to a tracking service. All calls come from one background thread; an
    exception means that the service could not be reached: the points are kept and sent again."""

    kind = "tracker"

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def start(self, run: RunView, run_id: str | None) -> str | None:
        """Opens the run, or continues `run_id`. Returns the service's id of the run. Called again
        after every failure, so it must find out what the service already has."""

    @abstractmethod
    def log_metrics(self, points: Sequence[MetricPoint]) -> None: ...

    @abstractmethod
    def log_artifact(self, path: Path, folder: str) -> None:
        """Uploads a file of the run folder into `folder` of the run."""

    @abstractmethod
    def finish(self, status: Literal["finished", "failed", "killed"]) -> None: ...

    def stored_points(self) -> Sequence[MetricPoint] | None:
        """What the service has of the run that `start` opened; None where it is not asked. The
        conformance kit asks, to see that nothing is lost and nothing stored twice. Keys may be
        written as the service writes them."""
        return None

    def named_store(self) -> str | None:
        """The store that the configuration itself names, as it may be shown; None where the user's
        environment decides, such as by `MLFLOW_TRACKING_URI`. A run folder may come from a
        stranger, so `sslkit eval` sends nothing to a store that only the folder's recipe names."""
        return f"that of the tracker {type(self).__name__}"

    def ui_command(self, host: str, port: int) -> list[str] | None:
        """The command that opens the service's own pages; None where it has none."""
        return None

    def open_group(self, key: str, name: str) -> Mapping[str, Any]:
        """Opens what the service shows the runs of a comparison under, or finds it by its unique
        `key`. Returns the fields of this `Config` that put a run there; none where the service
        has no such thing."""
        return {}

    def close_group(self, key: str, artifacts: Sequence[Path]) -> None:
        """The comparison is made: uploads its files to what `open_group` opened."""


class Callback(Component):
    """Watches a run, and may return numbers to log. Constructed as `cls(config)`; runs only where a
    recipe lists it.

    All hooks are called in the thread that trains, by the first rank alone, without gradients and
    under random numbers of their own, so that drawing some changes nothing. A callback must not
    change results: writing to a parameter, a buffer, a gradient or a view, or changing the mode of
    a module, ends the run with a message. Tensors are valid during the call: clone what is kept. A
    callback has no state in checkpoints; after a resume it begins anew with `on_start`.

    Numbers (floats, or tensors of one element) are logged as `callback/<name>/<key>`, with the name
    in the recipe, into `metrics.jsonl` and, where they are finite, the tracker."""

    kind = "callback"

    def __init__(self, config: Any) -> None:
        self.config = config

    def on_start(self, run: RunView, method: Method) -> None:
        """Before the first step, also after a resume. `method` may be kept, to look at; with
        `train.parallel: fsdp` asking it for anything is a PluginError."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        """After the views of a batch are made, before the step; every step."""

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> Mapping[str, float | Tensor] | None:
        """At log steps, when the gradients of the whole batch are complete, in their true size and
        after `Method.after_backward`; before clipping and the optimiser. By the names of the
        method's parameters, those that have one. In float16 they may not be finite; the step is
        then skipped."""
        return None

    def on_step(
        self, run: RunView, metrics: Mapping[str, float], progress: Progress
    ) -> Mapping[str, float | Tensor] | None:
        """At log steps, after the step."""
        return None

    def on_evaluation(
        self, run: RunView, metrics: Mapping[str, float], progress: Progress
    ) -> Mapping[str, float | Tensor] | None:
        """After the evaluators of an epoch ran."""
        return None
