"""What may be said of any input: exit code, messages, time, memory, and what is left alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .sandbox import Outcome

CPU_S = 5.0
MEMORY_MB = 1000.0
_MAX_LINE = 2100
"""Characters: the longest message of ours, and what stands before it."""
_MAX_LINES = 300
_UNEXPECTED = "The same command with --debug shows the traceback"
_RAW_WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u2028\u2029\u202a-\u202e]")
MARKER = "marker-of-an-attack"
"""A file of this name is what hostile inputs try to make."""


@dataclass(frozen=True)
class Needs:
    """What the same command takes for the input as it was before it was changed."""

    cpu_s: float = 0.0
    peak_mb: float = 0.0


def judge(outcome: Outcome, needs: Needs, folder: Path) -> list[str]:
    """Every fault that any command can have; empty where it did what it should.

    needs: of the clean input, beyond which come `CPU_S` and `MEMORY_MB`. folder: of the input."""
    faults = [*_ending(outcome), *message_faults(outcome), *outcome.trespasses]
    if outcome.cpu_s > needs.cpu_s + CPU_S and not outcome.hung:
        faults.append(f"took {outcome.cpu_s:.1f} s of CPU time ({needs.cpu_s:.1f} s when clean)")
    if outcome.peak_mb > needs.peak_mb + MEMORY_MB and not outcome.stopped:
        faults.append(f"took {outcome.peak_mb - needs.peak_mb:,.0f} MB more than when clean")
    if any(folder.rglob(MARKER)):
        faults.append("ran code of the input")
    if any(folder.glob("work/**/traceback.txt")):
        faults.append("left a traceback.txt: an unexpected failure")
    return faults


def _ending(outcome: Outcome) -> list[str]:
    if outcome.stopped:
        return [f"{'hangs: ' if outcome.hung else ''}{outcome.stopped}"]
    if outcome.code not in (0, 1, 2):
        return [f"ended with code {outcome.code}"]
    if outcome.code and not (outcome.stderr.strip() or outcome.stdout.strip()):
        return [f"ended with code {outcome.code} and without a word"]
    return []


def message_faults(outcome: Outcome) -> list[str]:
    """What is wrong with the words of a command, whatever it did."""
    text = f"{outcome.stdout}\n{outcome.stderr}"
    lines = text.split("\n")
    faults = []
    if "Traceback (most recent call last)" in text:
        faults.append("shows a traceback")
    if _UNEXPECTED in text:
        (line,) = [line for line in lines if _UNEXPECTED in line][:1]
        faults.append(f"fails unexpectedly: {line[:300]}")
    if _RAW_WARNING.search(text):
        faults.append("shows a warning of Python as it is")
    if _CONTROL.search(text):
        faults.append("prints control characters of the input")
    if len(lines) > _MAX_LINES:
        faults.append(f"prints {len(lines)} lines")
    if max(map(len, lines)) > _MAX_LINE:
        faults.append(f"prints a line of {max(map(len, lines)):,} characters")
    if outcome.code == 2 and outcome.stderr.strip() and not _is_worded(outcome.stderr):
        faults.append(f"words an error in no known form: {outcome.stderr.strip()[-200:]!r}")
    return faults


def _is_worded(stderr: str) -> bool:
    """Whether the last line of an error is one of ours, or of the parser of the command line."""
    return stderr.strip().splitlines()[-1].startswith(("error: ", "Error: ", "warning: "))
