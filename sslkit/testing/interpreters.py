"""Other Python interpreters, for what one interpreter cannot see of itself."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .laws import LawBrokenError
from .prepared import PreparedInterpreter, Work

TORCH = ("numpy", "torch", "sslkit.api", "sslkit.nn.functional", "sslkit.recipe")
"""What every plugin may find imported."""
LIMIT_S = 300
"""Seconds that one may take."""
_SEED = str(abs(hash("another order")) % 1000)
"""By which it orders sets; follows from the seed here, and is another."""


def in_another_interpreter(
    script: str,
    *words: str,
    what: str,
    given: str = "",
    folder: Path | None = None,
    as_begun: bool = False,
    prepared: tuple[str, ...] = (),
) -> str:
    """What a script prints in an interpreter of its own, which finds the modules that this one
    finds, and orders sets in another way.

    words: its arguments. given: its standard input. folder: where it runs. as_begun: whether it has
    the environment variables that this one began with, not those that imports have set since.
    prepared: modules that it may have imported before, on Linux, where it is a fork of one that
    has. what: begins the message of the LawBrokenError that is raised where it fails."""
    path = [str(Path(place).absolute()) for place in sys.path]
    variables = dict(_first_variables() if as_begun else os.environ)
    variables |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": _SEED}
    if prepared and sys.platform == "linux":
        where = str((folder or Path()).absolute())
        work = Work(script, words, given, where, variables, ["", *path], LIMIT_S)
        done = _prepared(prepared).run(work)
    else:
        done = subprocess.run(
            [sys.executable, "-B", "-c", script, *words],
            input=given, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            env=variables,
        )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended the process"])[-1]
        raise LawBrokenError(f"{what}: {last}")
    return done.stdout


@functools.cache
def _prepared(modules: tuple[str, ...]) -> PreparedInterpreter:
    """One for all laws of this process that need these modules."""
    path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    variables = {**_first_variables(), "PYTHONPATH": path, "PYTHONHASHSEED": _SEED}
    interpreter = PreparedInterpreter(modules, variables)
    atexit.register(interpreter.close)
    return interpreter


def _first_variables() -> Mapping[str, str]:
    """The environment variables that this process began with, where the system tells (Linux)."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    pairs = [os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry]
    return {name: value for name, _, value in pairs} or os.environ
