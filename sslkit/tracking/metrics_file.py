"""The format of `metrics.jsonl`: one JSON object a line, appended as the run goes on.

    {"step": 50, "time_ms": 1795370587000, "metrics": {"train/loss": 4.1, "train/lr": 0.06}}

JSON has no numbers that are not finite: these are the strings "NaN", "Infinity" and "-Infinity",
which Python's `float` and JavaScript's `Number` read back. A process killed while it writes leaves
a torn last line, which readers leave out and the next writer removes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PREFIX = "system/"
"""Metrics of the machine. They belong to a moment, not to a step."""

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class MetricLine:
    """What was logged at one call."""

    step: int
    time_ms: int
    """Milliseconds since 1970."""
    metrics: Mapping[str, float]


def encode_line(line: MetricLine) -> str:
    """The line with its newline. Values may be anything that `float` takes."""
    metrics = {key: _encode(float(value)) for key, value in line.metrics.items()}
    record = {"step": line.step, "time_ms": line.time_ms, "metrics": metrics}
    return json.dumps(record, allow_nan=False) + "\n"


def decode_line(text: bytes) -> MetricLine | None:
    """The line, or None where the bytes are no line of this format."""
    try:
        record = json.loads(text)
        metrics = {str(key): float(value) for key, value in record["metrics"].items()}
        return MetricLine(int(record["step"]), int(record["time_ms"]), metrics)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_lines(path: Path) -> Iterator[MetricLine]:
    """All whole lines of the file, oldest first; none where the file is missing."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            line = decode_line(text) if text.endswith(b"\n") else None
            if line is not None:
                yield line


def read_from(path: Path, offset: int) -> tuple[list[MetricLine], int]:
    """Whole lines from a byte offset on, about 64 KiB of them, and the offset behind the last."""
    with path.open("rb") as file:
        file.seek(offset)
        chunk = file.read(_CHUNK_BYTES)
        if b"\n" not in chunk:
            chunk += file.readline()
    whole = chunk[: chunk.rfind(b"\n") + 1]
    decoded = (decode_line(text) for text in whole.splitlines())
    return [line for line in decoded if line is not None], offset + len(whole)


def truncate_after(path: Path, step: int | None) -> int:
    """Cuts the file before the first line after `step`, and a torn last line in any case. Returns
    the highest step that is left, 0 where none is.

    Everything behind that line was logged later in time than the state at `step`, so a run that
    resumes there logs it again. `step=None` removes the torn line only."""
    last_step = 0
    if not path.exists():
        return last_step
    with path.open("r+b") as file:
        keep = 0
        for text in file:
            line = decode_line(text)
            if not text.endswith(b"\n") or (
                step is not None and line is not None and line.step > step
            ):
                break
            keep += len(text)
            last_step = last_step if line is None else max(last_step, line.step)
        if keep != path.stat().st_size:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return last_step


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
