"""The format of `metrics.jsonl`: one JSON object a line, appended as the run goes on.

    {"step": 50, "time_ms": 1795370587000, "metrics": {"train/loss": 4.1, "train/lr": 0.06}}

JSON has no numbers that are not finite: these are the strings "NaN", "Infinity" and "-Infinity",
which Python's `float` and JavaScript's `Number` read back. A process killed while it writes leaves
a torn last line, which readers leave out and the next writer removes. A log may come from a
stranger: lines that are no such object, or longer than any of ours, are left out too.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.errors import RunFolderError
from sslkit.files import bounded_lines, open_file, parse_json, reason

SYSTEM_PREFIX = "system/"
"""Metrics of the machine. They belong to a moment, not to a step."""

MAX_LOG_BYTES = 128 << 20
"""Bytes of the log of another run. A line at every one of 300,000 steps takes about as much."""
_MAX_LINE_BYTES = 1 << 20
MAX_NUMBER = 2**53
"""The largest step or time: JSON's whole numbers, and what data bases hold."""
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
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
        # A log has up to millions of lines: the slower checks are for those that may need them.
        record = parse_json(text) if b"\\u" in text else json.loads(text)
        # Interned: a log names the same few metrics in every line.
        metrics = {sys.intern(key): _number(value) for key, value in record["metrics"].items()}
        return MetricLine(_whole(record["step"]), _whole(record["time_ms"]), metrics)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("a metric is a number")
    return float(value)


def _whole(value: Any) -> int:
    number = int(value)
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError("steps and times are 0 to 2^53")
    return number


def read_lines(path: Path, most: int | None = MAX_LOG_BYTES) -> Iterator[MetricLine]:
    """All whole lines of the file, oldest first; none where the file is missing.

    most: bytes that it may have; None: any number, for a log that this process writes. Raises
    RunFolderError where it is larger, is no regular file, or cannot be read."""
    try:
        with open_file(path, inside=path.parent, most=most) as file:
            for text, _ in bounded_lines(file, _MAX_LINE_BYTES):
                if text is not None and (line := decode_line(text)) is not None:
                    yield line
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: {reason(error)}") from error


def read_from(path: Path, offset: int) -> tuple[list[MetricLine], int]:
    """Whole lines from a byte offset on, about 64 KiB of them, and the offset behind the last.
    Raises OSError and ValueError."""
    with open_file(path, inside=path.parent) as file:
        file.seek(offset)
        found, end = [], offset
        size = os.fstat(file.fileno()).st_size
        for text, length in bounded_lines(file, _MAX_LINE_BYTES):
            if text is None and end + length >= size:
                break  # it may still be being written
            end += length
            line = None if text is None else decode_line(text)
            found += [line] if line is not None else []
            if end - offset >= _CHUNK_BYTES:
                break
    return found, end


def read_tail(path: Path, most: int) -> list[MetricLine]:
    """The whole lines in the last `most` bytes of the file, oldest first; none where it is missing.
    Raises RunFolderError where it is no regular file, or cannot be read."""
    try:
        with open_file(path, inside=path.parent) as file:
            start = max(file.seek(0, os.SEEK_END) - most, 0)
            file.seek(max(start - 1, 0))
            parts = file.read(most + 1).split(b"\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: {reason(error)}") from error
    whole = parts[1 if start > 0 else 0 : -1]  # the last is torn, or empty
    return [line for text in whole if (line := decode_line(text)) is not None]


def truncate_after(path: Path, step: int | None) -> int:
    """Cuts the file before the first line after `step`, and a torn last line in any case. Returns
    the highest step that is left, 0 where none is.

    Everything behind that line was logged later in time than the state at `step`, so a run that
    resumes there logs it again. `step=None` removes the torn line only. Raises RunFolderError
    where the file is no regular one."""
    keep, last_step = 0, 0
    try:
        with open_file(path, inside=path.parent) as file:
            size = os.fstat(file.fileno()).st_size
            for text, length in bounded_lines(file, _MAX_LINE_BYTES):
                if text is None and keep + length >= size:
                    break
                line = None if text is None else decode_line(text)
                if step is not None and line is not None and line.step > step:
                    break
                keep += length
                last_step = last_step if line is None else max(last_step, line.step)
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: {reason(error)}") from error
    if keep != size:
        with path.open("r+b") as file:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return last_step


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
