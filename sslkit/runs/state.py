"""Where a run stands, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sslkit.api import RunFacts
from sslkit.errors import CheckpointError, RunFolderError
from sslkit.files import read_json, reason

from .checkpoint import Checkpoints
from .checkpoint import load as load_checkpoint
from .folder import RunFolder
from .metrics_file import read_lines

RESULTS = "results.json"
"""Written last: a run folder that has it is finished."""


_MAX_SIDE = 1 << 14
"""Pixels of a side, and channels, of images that a network may be built for."""


_FACTS: TypeAdapter[RunFacts] = TypeAdapter(RunFacts)


def is_finished(path: Path) -> bool:
    """Whether a run came to its end."""
    return (path / RESULTS).exists()


def why_stopped(path: Path) -> str | None:
    """The protocol that ended a run before its time, and its reason; None where none did. Raises
    RunFolderError where the record cannot be read."""
    file = RunFolder(path).stopped
    try:
        found = read_json(file, inside=path)
        stops = "; ".join(f"{protocol}: {why}" for protocol, why in found["stops"].items())
        return f"step {int(found['step'])}: stopped by {stops}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunFolderError(f"{file}: cannot be read ({reason(error)}); remove it") from error


def is_fork(path: Path) -> bool:
    """Whether a run started from another one's state: it is no repetition of its recipe."""
    try:
        return read_environment(path).get("forked_from") is not None
    except CheckpointError:  # killed before it was written, and so before the first step
        return False


def read_environment(path: Path) -> dict[str, Any]:
    """environment.json of a run folder. Raises CheckpointError."""
    try:
        environment = read_json(path / "environment.json", inside=path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: environment.json cannot be read ({reason(error)})"
        ) from error
    if not isinstance(environment, dict):
        raise CheckpointError(f"{path}: environment.json holds no block of fields")
    return environment


def read_state(run_or_checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint, or in the newest good checkpoint of a run folder."""
    if not run_or_checkpoint.exists():
        raise CheckpointError(f"{run_or_checkpoint}: no such run folder or checkpoint")
    if run_or_checkpoint.is_dir():
        state, _ = Checkpoints(RunFolder.open(run_or_checkpoint).checkpoints, keep=1).load_newest()
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


def run_folder_of(run_or_checkpoint: Path) -> RunFolder:
    """The run folder that a path is, or that a checkpoint lies in. Raises RunFolderError."""
    path = run_or_checkpoint
    if not path.exists():
        raise RunFolderError(f"{path}: no such run folder or checkpoint")
    return RunFolder.open(path if path.is_dir() else path.parent.parent)


def was_evaluated(folder: RunFolder, step: int) -> bool:
    """Whether the log already holds an evaluation after `step`; a resume must not repeat it."""
    return any(
        line.step == step and any(key.startswith(("eval/", "collapse/")) for key in line.metrics)
        for line in read_lines(folder.metrics)
    )


def last_metrics(folder: RunFolder) -> dict[str, float]:
    """The last value of each metric of a run."""
    metrics: dict[str, float] = {}
    for line in read_lines(folder.metrics):
        metrics.update(line.metrics)
    return metrics


def read_facts(path: Path) -> RunFacts:
    """The facts of a run, as its environment.json records them. Raises CheckpointError."""
    try:
        facts = _FACTS.validate_python(read_environment(path)["facts"])
    except KeyError as error:
        raise CheckpointError(
            f"{path}: environment.json has no {error}; it is not of this version"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: the facts in environment.json are not those of this version ({where}: "
            f"{first['msg']})"
        ) from error
    sizes = (facts.channels, *(view.size for view in facts.views))
    if not facts.views or not all(0 < number <= _MAX_SIDE for number in sizes):
        raise CheckpointError(
            f"{path}: the facts in environment.json are not those of this version (channels and "
            f"sizes {sizes})"
        )
    return facts


def training_data_of(folder: RunFolder) -> str | None:
    """The fingerprint of the training images of a run, where it is recorded."""
    data = read_environment(folder.path).get("data")
    return str(data["train"]) if isinstance(data, Mapping) and "train" in data else None
