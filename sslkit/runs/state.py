"""Where a run stands, read from its checkpoints and its log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslkit.errors import CheckpointError
from sslkit.parallel.world import World

from .checkpoint import ONE_PROCESS, Checkpoints
from .checkpoint import load as load_checkpoint
from .evaluations import is_of_weights
from .folder import RunFolder
from .metrics_file import read_lines


def read_state(run_or_checkpoint: Path, world: World = ONE_PROCESS) -> dict[str, Any]:
    """The state in a checkpoint, or in the newest good checkpoint of a run folder: the same one on
    all ranks of `world`, who call this together."""
    if not run_or_checkpoint.exists():
        raise CheckpointError(f"{run_or_checkpoint}: no such run folder or checkpoint")
    if run_or_checkpoint.is_dir():
        folder = RunFolder.open(run_or_checkpoint)
        if is_of_weights(folder):
            raise CheckpointError(
                f"{run_or_checkpoint}: weights were measured here and not trained, so that the "
                f"folder has none; name those under `backbone` in {folder.evaluation.name}"
            )
        state, _ = Checkpoints(folder.checkpoints, keep=1).load_newest(world)
        if state is None:
            raise CheckpointError(f"{run_or_checkpoint}: the run has no checkpoint")
        return state
    return load_checkpoint(run_or_checkpoint)


def step_of(state: Mapping[str, Any], source: str) -> int:
    """The steps that a checkpoint has done. Raises CheckpointError where it does not say."""
    step = state.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"{source}: its step is {step!r:.40}; valid is a whole number from 0")
    return step


def was_evaluated(folder: RunFolder, step: int) -> bool:
    """Whether the log already holds an evaluation after `step`; a resume must not repeat it."""
    return any(
        line.step == step and any(key.startswith(("eval/", "collapse/")) for key in line.metrics)
        for line in read_lines(folder.metrics)
    )


def was_logged(folder: RunFolder, step: int, metrics: Mapping[str, float]) -> bool:
    """Whether the log already holds these metrics of an evaluation after `step`, with these values:
    a machine on which a run was finished may have measured others than the one before it."""
    logged: dict[str, float] = {}
    for line in read_lines(folder.metrics):
        if line.step == step:
            logged.update(line.metrics)
    return all(name in logged and _is_same(logged[name], each) for name, each in metrics.items())


def _is_same(logged: float, value: float) -> bool:
    return logged == value or (math.isnan(logged) and math.isnan(value))


def last_metrics(folder: RunFolder) -> dict[str, float]:
    """The last value of each metric of a run."""
    metrics: dict[str, float] = {}
    for line in read_lines(folder.metrics):
        metrics.update(line.metrics)
    return metrics
