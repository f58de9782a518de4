"""A fork of an interpreter that has imported much is, to whoever starts it, a new one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import warm_python as warm

pytestmark = pytest.mark.slow  # imports torch, timm and MLflow once

PROGRAM = """\
import os, sys, time
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], sys.prefix, sys.executable)
print(sys.stdin.read(), file=sys.stderr)
print("torch" in sys.modules, "sslkit" in sys.modules)
if sys.argv[1] == "raise":
    raise ValueError("no")
if sys.argv[1] == "wait":
    open("pid", "w").write(str(os.getpid()))
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def program(tmp_path: Path, warm_python: str) -> Path:
    """A module in the working folder, as a program."""
    (tmp_path / "given_module.py").write_text(PROGRAM)
    path = tmp_path / "program"
    path.write_text(warm.script(warm_python, tmp_path / "venv", "given_module"))
    path.chmod(0o755)
    return path


def start(program: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program, *words],
        cwd=program.parent,
        env={**os.environ, "WORD": "given"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_has_what_it_was_started_with(program: Path) -> None:
    process = start(program, "3", "two words")
    printed, errors = process.communicate("read from the pipe")
    folder = program.parent
    venv = folder / "venv"
    assert printed.splitlines() == [
        f"['3', 'two words'] {folder} given {venv} {venv}/bin/python",
        "True False",
    ]
    assert errors == "read from the pipe\n"
    assert process.returncode == 3


def test_what_it_raises_is_printed_and_ends_with_1(program: Path) -> None:
    process = start(program, "raise")
    _, errors = process.communicate("")
    assert errors.splitlines()[-1] == "ValueError: no"
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_it(program: Path, number: signal.Signals) -> None:
    process = start(program, "wait")
    assert process.stdin is not None
    process.stdin.close()
    path = program.parent / "pid"
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) == -number
    while Path(f"/proc/{path.read_text()}").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
