"""A fork of a prepared interpreter runs a script as a new interpreter does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslkit.testing.prepared import PreparedInterpreter, Work

PRINTS = """\
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], sys.path[0], sys.stdin.read())
print("fractions" in sys.modules, __name__)
os.environ["WORD"] = "changed"
sys.exit(3)
"""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[PreparedInterpreter]:
    prepared = PreparedInterpreter(["fractions"], os.environ)
    yield prepared
    prepared.close()


def work(script: str, folder: Path, **changed: Any) -> Work:
    fields: dict[str, Any] = {
        "words": ["a", "b c"], "given": "read", "folder": str(folder), "limit_s": 60.0,
        "variables": {"WORD": "given"}, "path": ["/first", *sys.path],
    }  # fmt: skip
    return Work(script, **{**fields, **changed})


def test_each_fork_begins_alike(interpreter: PreparedInterpreter, tmp_path: Path) -> None:
    for _ in range(2):
        done = interpreter.run(work(PRINTS, tmp_path))
        assert done.stdout == f"['a', 'b c'] {tmp_path} given /first read\nTrue __main__\n"
        assert (done.returncode, done.stderr) == (3, "")


def test_what_it_raises_is_printed(interpreter: PreparedInterpreter, tmp_path: Path) -> None:
    done = interpreter.run(work("raise ValueError('no')", tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: no"


def test_one_that_is_killed_or_takes_too_long_ends_alone(
    interpreter: PreparedInterpreter, tmp_path: Path
) -> None:
    assert interpreter.run(work("import os; os.kill(os.getpid(), 9)", tmp_path)).returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        interpreter.run(work("import time; time.sleep(60)", tmp_path, limit_s=0.2))
    assert interpreter.run(work("", tmp_path)).returncode == 0


def test_one_that_has_ended_says_so(tmp_path: Path) -> None:
    prepared = PreparedInterpreter(["no_module_of_this_name"], os.environ)
    with pytest.raises((RuntimeError, BrokenPipeError)):
        prepared.run(work("", tmp_path))
