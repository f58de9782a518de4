"""Two run folders held side by side, number by number and bit by bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.errors import CheckpointError, RunFolderError
from sslkit.evaluation.scores import Estimate
from sslkit.files import reason
from sslkit.nn import safetensors_file
from sslkit.runs.checkpoint import load as load_checkpoint
from sslkit.runs.endings import read_results
from sslkit.runs.folder import RunFolder, checkpoint_paths
from sslkit.runs.metrics_file import read_lines

LOG = "log"
_WATCHING = ("perf/", "system/", "callback/")
"""Metrics that are measurements of the machine, or come from what only watches."""


@dataclass(frozen=True)
class Difference:
    """A number, or a tensor, that two runs do not share."""

    where: str
    """The log, or the name of a file."""
    step: int
    what: str
    """The metric, the score, or the dotted name of the tensor."""
    first: float | str | None
    """What the first run has; None where it has nothing."""
    second: float | str | None
    largest: float | None
    """By how much, of a tensor at most; None where that is no number."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON, where NaN is a text, as in the log."""
        return {**asdict(self), "first": _written(self.first), "second": _written(self.second)}


@dataclass(frozen=True)
class Findings:
    """What two run folders share, and what not."""

    steps: tuple[int, ...]
    """The log steps that were compared."""
    numbers: int
    """How many logged numbers were."""
    compared: tuple[str, ...]
    """What else was compared, in words."""
    skipped: tuple[str, ...]
    """Why a file was not compared: it is damaged, or gone."""
    differences: tuple[Difference, ...]
    """The logged numbers that differ, by step; then the first tensor or score of each file."""

    @property
    def first(self) -> Difference | None:
        """The earliest difference, a logged number before what the file of that step holds."""
        return min(self.differences, key=lambda each: each.step, default=None)

    def shown(self, most: int) -> list[Difference]:
        """The first `most` of the log, and those of the files."""
        logged = [each for each in self.differences if each.where == LOG]
        return [*logged[:most], *(each for each in self.differences if each.where != LOG)]

    @property
    def equal_until(self) -> int | None:
        """The last log step before the earliest difference; None where that is the first one."""
        if self.first is None:
            return self.steps[-1] if self.steps else None
        return max((step for step in self.steps if step < self.first.step), default=None)

    @property
    def differing_steps(self) -> int:
        """How many of the log steps have a number that differs."""
        return len({each.step for each in self.differences if each.where == LOG})


def compare_runs(first: RunFolder, second: RunFolder, until: int, *, whole: bool) -> Findings:
    """Compares two runs up to a step. whole: both came to their end, which is that step.

    Raises RunFolderError where a log cannot be read."""
    ours, theirs = _logged(first, until), _logged(second, until)
    steps = tuple(sorted(ours.keys() & theirs.keys()))
    pairs = [
        pair
        for step in sorted(ours.keys() | theirs.keys())
        for pair in _pairs(step, ours.get(step, {}), theirs.get(step, {}), step == until)
    ]
    differences = [found for each in pairs if (found := _unlike(each)) is not None]
    compared: list[str] = []
    skipped: list[str] = []
    for compare in (_compare_states, *((_compare_encoders, _compare_results) if whole else ())):
        try:
            found = compare(first, second, until)
        except (CheckpointError, RunFolderError) as error:  # after hours of work the rest counts
            skipped.append(str(error))
            continue
        if found is not None:
            compared.append(found[0])
            differences += [] if found[1] is None else [found[1]]
    return Findings(steps, len(pairs), tuple(compared), tuple(skipped), tuple(differences))


# --- The log --------------------------------------------------------------------------------------

_Pair = tuple[int, str, float | None, float | None]


def _logged(folder: RunFolder, until: int) -> dict[int, dict[str, float]]:
    """Step -> metric -> value; where a step was logged twice, as after a kill, the last counts."""
    found: dict[int, dict[str, float]] = {}
    for line in read_lines(folder.metrics):
        if line.step <= until:
            values = {k: v for k, v in line.metrics.items() if not k.startswith(_WATCHING)}
            if values:
                found.setdefault(line.step, {}).update(values)
    return found


def _pairs(
    step: int, ours: Mapping[str, float], theirs: Mapping[str, float], is_last: bool
) -> Iterator[_Pair]:
    """What one of the two has alone counts, but evaluations of the last step: a run that is stopped
    there makes none, and `sslkit eval` adds to them."""
    for key in dict.fromkeys((*ours, *theirs)):
        if (key in ours and key in theirs) or not is_last or key.startswith("train/"):
            yield step, key, ours.get(key), theirs.get(key)


def _unlike(pair: _Pair) -> Difference | None:
    step, key, ours, theirs = pair
    if repr(ours) == repr(theirs):  # NaN is NaN, and 0 is not -0
        return None
    return Difference(LOG, step, key, ours, theirs, _distance(ours, theirs))


def _written(value: float | str | None) -> float | str | None:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _distance(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None:
        return None
    found = abs(ours - theirs)
    return found if math.isfinite(found) else None


# --- Files ----------------------------------------------------------------------------------------


def _compare_states(
    first: RunFolder, second: RunFolder, until: int
) -> tuple[str, Difference | None] | None:
    """The newest checkpoint that both have; None where they share none."""
    ours, theirs = (
        {path.name: path for path in checkpoint_paths(folder.checkpoints)}
        for folder in (first, second)
    )
    shared = [name for name in ours if name in theirs and saved_step(ours[name]) <= until]
    if not shared:
        return None
    name = shared[-1]
    states = [load_checkpoint(paths[name], inside=folder.path)
              for paths, folder in ((ours, first), (theirs, second))]  # fmt: skip
    return _compared(name, saved_step(ours[name]), *map(flat_state, states))


def saved_step(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.stem.rpartition("-")[2])


def _compare_encoders(
    first: RunFolder, second: RunFolder, until: int
) -> tuple[str, Difference | None]:
    found = []
    for folder in (first, second):
        try:
            found.append(safetensors_file.load(folder.encoder))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder.encoder}: cannot be read: {reason(error)}") from error
    return _compared(first.encoder.name, until, *found)


def _compared(
    where: str, step: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[str, Difference | None]:
    difference = None
    for name in dict.fromkeys((*ours, *theirs)):
        if not is_same(ours.get(name), theirs.get(name)):
            values = ours.get(name), theirs.get(name)
            difference = Difference(
                where, step, name, _kind(values[0]), _kind(values[1]), largest_of(*values)
            )
            break
    tensors = sum(isinstance(value, Tensor) for value in ours.values())
    return f"{where}: {tensors} tensors", difference


def flat_state(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> tensor or plain value of all that a state holds."""
    if isinstance(value, Mapping):
        items: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {
        place: found
        for key, inside in items
        for place, found in flat_state(inside, f"{name}.{key}" if name else str(key)).items()
    }


def is_same(ours: Any, theirs: Any) -> bool:
    """Whether two values have the same bits: NaN is NaN, and 0 is not -0."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return type(ours) is type(theirs) and repr(ours) == repr(theirs)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    bits, others = (each.contiguous().reshape(-1).view(torch.uint8) for each in (ours, theirs))
    return torch.equal(bits, others)


def largest_of(ours: Any, theirs: Any) -> float | None:
    """The largest difference of two tensors' entries; None where they are none of one shape."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return None
    found = (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
    return found if math.isfinite(found) else None


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value)[:80]


def _compare_results(
    first: RunFolder, second: RunFolder, until: int
) -> tuple[str, Difference | None]:
    """Every score of every subject, with its interval."""
    ours, theirs = ({
        f"{row.evaluator}/{row.metric} of {subject}": value
        for row in read_results(folder).scores for subject, value in row.values.items()
    } for folder in (first, second))  # fmt: skip
    difference = None
    for name in dict.fromkeys((*ours, *theirs)):
        pair = ours.get(name), theirs.get(name)
        if pair[0] != pair[1]:
            one, other = map(_value, pair)
            difference = Difference(
                first.results.name, until, name, one, other, _distance(one, other)
            )
            break
    return f"{first.results.name}: {len(ours)} scores", difference


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value
