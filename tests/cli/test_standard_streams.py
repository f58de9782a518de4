"""Output that is not UTF-8, whose reader leaves, or that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslkit.report.plan import text_plot

_ALL = """\
import sys
from sslkit.cli import main
for words in sys.argv[1:]:
    sys.argv = ["sslkit", *words.split()]
    try:
        main()
    except SystemExit as end:
        print(sys.argv[1:3], end.code or 0)
"""
"""Runs several commands in one process, and says how each ended."""


def run_all(*commands: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", _ALL, *commands], cwd=cwd, capture_output=True,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.slow  # 20 seconds
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(
            {"PYTHONIOENCODING": "cp1252"},
            id="cp1252",
            marks=pytest.mark.slow,  # as "ascii", which has fewer letters
        ),
        pytest.param({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, id="ascii"),
    ],
)
def test_every_command_writes_to_terminals_that_are_not_utf8(
    environment: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    name = tmp_path / "größe-≥.yaml"
    name.write_text(tiny.read_text() + "# ≥\n", encoding="utf-8")
    odd = os.fsdecode(b"\xff.yaml")
    (tmp_path / odd).write_text("name: [", encoding="utf-8")
    commands = [
        "plugins show simclr", "plugins list", "recipes list", "doctor", "schema", "plan tiny.yaml",
        "validate größe-≥.yaml", f"validate {odd}", "plugins show ≥", "--help",
        "run tiny.yaml -o train.max_steps=1",
    ]  # fmt: skip
    done = run_all(*commands, cwd=tmp_path, **environment)
    out, err = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
    assert done.returncode == 0, err
    assert "Traceback" not in err
    assert "UnicodeEncodeError" not in out + err
    codes = [line.rsplit("] ", 1)[1] for line in out.splitlines() if line.startswith("['")]
    assert codes == ["0", "0", "0", "0", "0", "0", "0", "2", "2", "0", "0"], out + err
    assert "? 0" in out  # `≥ 0` of a type
    assert "|######" in out  # the learning rate, in characters that every terminal has


@pytest.mark.slow  # 13 seconds
def test_a_reader_that_leaves_ends_nothing(tiny: Path, tmp_path: Path) -> None:
    """As `sslkit ... 2>&1 | head -0` does: no message, and the run is complete."""
    reader, writer = os.pipe()
    os.close(reader)
    words = ["run", str(tiny), "-o", "train.max_steps=1"]
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", *words], cwd=tmp_path, stdout=writer, stderr=writer
    )
    os.close(writer)
    assert done.returncode == 0
    assert list(tmp_path.glob("runs/*/results.json"))


def test_a_short_output_to_a_closed_pipe_says_nothing(tmp_path: Path) -> None:
    """Written when the interpreter ends, after every handler."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", "--version"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is a Linux thing")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sslkit", "--version"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr == b"error: [Errno 28] No space left on device\n"


@pytest.mark.slow  # 2 seconds
def test_a_process_without_streams_works(tmp_path: Path) -> None:
    code = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, sys.argv[1:])"
    python = [sys.executable, "-c", code, sys.executable, "-m", "sslkit"]
    assert subprocess.run([*python, "plugins", "list"], cwd=tmp_path).returncode == 0
    assert subprocess.run([*python, "plugins", "show", "nope"], cwd=tmp_path).returncode == 2


def test_the_curve_fits_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_plot([1.0], height=1) == ["           |█"]
    monkeypatch.setattr(sys, "stdout", None)
    assert text_plot([1.0], height=1) == ["           |#"]
