"""Other Python interpreters, for what one interpreter cannot see of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .laws import LawBrokenError

LIMIT_S = 300
"""Seconds that one may take."""


def in_another_interpreter(
    script: str,
    *words: str,
    what: str,
    given: str = "",
    folder: Path | None = None,
    as_begun: bool = False,
) -> str:
    """What a script prints in an interpreter of its own, which finds the modules that this one
    finds, and orders sets in another way.

    words: its arguments. given: its standard input. folder: where it runs. as_begun: whether it has
    the environment variables that this one began with, not those that imports have set since. what:
    begins the message of the LawBrokenError that is raised where it fails."""
    seed = str(abs(hash("another order")) % 1000)  # follows from the seed here, and is another
    path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    variables = _first_variables() if as_begun else os.environ
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, *words],
        input=given, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env={**variables, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended the process"])[-1]
        raise LawBrokenError(f"{what}: {last}")
    return done.stdout


def _first_variables() -> Mapping[str, str]:
    """The environment variables that this process began with, where the system tells (Linux)."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    pairs = [os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry]
    return {name: value for name, _, value in pairs} or os.environ
