"""What a run folder says of how the run ended: results, a stop by an evaluator, a step that was not
finite, a traceback, and images that could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from sslkit.errors import CheckpointError, RunFolderError, hide_logins
from sslkit.evaluation.scores import Estimate
from sslkit.files import MAX_JSON_BYTES, read_json, reason

from .folder import RunFolder

_RECORD_BYTES = 1 << 26
"""A failure record holds the positions of one batch: at most a few million numbers."""

# --- The end --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedScore:
    """One metric of one evaluator, for every subject that was measured."""

    evaluator: str
    metric: str
    values: Mapping[str, Estimate | None]
    """Subject (`trained`, `pixels`, `untrained`) -> value; None where it is not finite."""


@dataclass(frozen=True)
class SavedResults:
    """What others read of results.json."""

    scores: tuple[SavedScore, ...]
    evaluation_seconds: float | None
    """What evaluation cost in the whole run."""


def write_results(folder: RunFolder, results: Mapping[str, Any]) -> Path:
    """Writes results.json, last of all: the run is then finished."""
    return folder.write_json(folder.results, results)


def is_finished(path: Path) -> bool:
    """Whether a run came to its end."""
    return RunFolder(path).results.exists()


def read_results(folder: RunFolder, most: int = MAX_JSON_BYTES) -> SavedResults:
    """What a finished run came to. most: bytes that the file may have. Raises RunFolderError where
    it cannot be read, and FileNotFoundError where there is none."""
    found = _read_block(folder.results, most)
    try:
        scores = tuple(
            SavedScore(
                str(row["protocol"]),
                str(row["metric"]),
                {str(name): _estimate(each) for name, each in row["values"].items()},
            )
            for row in found["comparison"]
        )
        seconds = (found.get("cost") or {}).get("evaluation_seconds")
        return SavedResults(scores, None if seconds is None else _number(seconds))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunFolderError(
            f"{folder.path}: its files are not those of this version "
            f"({type(error).__name__}: {error})"
        ) from error


def _estimate(found: Mapping[str, Any]) -> Estimate | None:
    if found["value"] is None:
        return None
    low, high, images = found.get("low"), found.get("high"), found.get("images")
    return Estimate(
        value=_number(found["value"]),
        low=None if low is None else _number(low),
        high=None if high is None else _number(high),
        draws=int(found["draws"]),
        images=None if images is None else int(images),
    )


def _number(found: Any) -> float:
    """Raises ValueError for what no writer of ours makes: text, NaN, infinity."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not isfinite(found):
        raise ValueError(f"{str(found)[:40]} is no number")
    return float(found)


def _read_block(path: Path, most: int) -> dict[str, Any]:
    """Raises RunFolderError, and FileNotFoundError."""
    try:
        found = read_json(path, most, inside=path.parent)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({reason(error)})") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"{path}: holds no block of fields")
    return found


# --- A stop by an evaluator -----------------------------------------------------------------------


def write_stop(folder: RunFolder, step: int, stops: Mapping[str, str]) -> Path:
    """Writes stopped.json. stops: evaluator -> why it ends the run."""
    return folder.write_json(folder.stopped, {"step": step, "stops": dict(stops)})


def why_stopped(path: Path) -> str | None:
    """The evaluator that ended a run before its time, and its reason; None where none did. Raises
    RunFolderError where the record cannot be read."""
    file = RunFolder(path).stopped
    try:
        found = read_json(file, inside=path)
        stops = "; ".join(f"{evaluator}: {why}" for evaluator, why in found["stops"].items())
        return f"step {int(found['step'])}: stopped by {stops}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunFolderError(f"{file}: cannot be read ({reason(error)}); remove it") from error


# --- A failure ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailureRecord:
    """The step that was not finite. With the last checkpoint before it, from which the steps
    between follow, it is all that it takes to repeat that step."""

    step: int
    """Counted from 1."""
    first: str
    """What was not finite first."""
    loss: float
    grad_norm: float
    lr: float
    seed: int
    recipe_hash: str | None
    checkpoint: str | None
    """The name of the newest checkpoint before the step."""
    batch_indices: tuple[int, ...]
    """The positions of its images in the data."""


@dataclass(frozen=True)
class FailedStep:
    """What repeating the step takes of its record."""

    step: int
    first: str


def write_failure(folder: RunFolder, record: FailureRecord) -> Path:
    """Writes not_finite.json. JSON has no numbers that are not finite: the two are texts there."""
    values = {**vars(record), "loss": str(record.loss), "grad_norm": str(record.grad_norm)}
    return folder.write_json(folder.not_finite, values)


def read_failure(folder: RunFolder) -> FailedStep | None:
    """The step that was not finite; None where the run has no record of one. Raises
    CheckpointError."""
    path = folder.not_finite
    try:
        record = read_json(path, _RECORD_BYTES, inside=folder.path)
        step, first = record["step"], record["first"]
        if not isinstance(step, int) or step < 1 or not isinstance(first, str):
            raise ValueError("its step is none")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({reason(error)}); remove it to repeat one step from the "
            "newest checkpoint"
        ) from error
    return FailedStep(step, first)


def write_traceback(folder: RunFolder, text: str) -> Path:
    """Writes traceback.txt, without the logins that it may hold."""
    return folder.write_text(folder.traceback, hide_logins(text))


def forget_endings(folder: RunFolder) -> None:
    """Removes the records of what a resumed run is to get beyond."""
    folder.require_writable()
    for path in (folder.not_finite, folder.stopped):
        path.unlink(missing_ok=True)


def write_unreadable(
    folder: RunFolder, split: str, report: Mapping[str, object], noun: str
) -> list[str]:
    """Lists the samples of a split that could not be read, and says how many they are, where there
    are any. report: of `CachedSplit.report`. noun: for one of them, see `SampleSpec.noun`."""
    if not report["num_unreadable"]:
        return []
    path = folder.write_json(folder.corrupt_images(split), report)
    return [
        f"{report['num_unreadable']:,} of {report['num_images']:,} {noun}s of the {split} split "
        f"could not be read, and others stood in for them: {path}"
    ]
