"""The run folder: names, locks between real processes, atomic writes, cutting for a resume."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sslkit.errors import RunFolderError
from sslkit.runs.folder import RunFolder, sanitise_name
from sslkit.runs.metrics_file import MetricLine, encode_line, read_lines

HOLD = """
import sys, time
from sslkit.runs.folder import RunFolder
folder = RunFolder.open(sys.argv[1], write=True)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder open for writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_name_has_time_and_is_unique(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path / "runs", "simclr r18/cifar") for _ in range(5)]
    names = [folder.path.name for folder in folders]
    assert len(set(names)) == 5
    assert all(re.fullmatch(r"simclr-r18-cifar-\d{8}-\d{6}-[0-9a-f]{4}", name) for name in names)
    assert folders[0].path.name.endswith(folders[0].id)
    assert folders[0].path.is_absolute()


def test_processes_of_one_second_get_different_folders(tmp_path: Path) -> None:
    script = (
        "import sys; from sslkit.runs.folder import RunFolder;"
        "[RunFolder.create(sys.argv[1], 'x') for _ in range(20)]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "runs")]) for _ in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(list((tmp_path / "runs").iterdir())) == 40


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("simclr-r18", "simclr-r18"),
        ("../../etc/passwd", "etc-passwd"),
        ("...", "run"),
        ("", "run"),
        ("größe 3", "gr-e-3"),
        ("a" * 300, "a" * 80),
    ],
)
def test_sanitised_names(given: str, expected: str) -> None:
    assert sanitise_name(given) == expected


def test_second_writer_is_refused_and_names_the_process(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "x") as folder:
        path = folder.path
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} on "):
            RunFolder.open(path, write=True)
        reader = RunFolder.open(path)
        assert not reader.writable
        with pytest.raises(RuntimeError, match="opened for reading"):
            reader.write_text("report.md", "")
    with holder(path) as other:
        with pytest.raises(RunFolderError) as caught:
            RunFolder.open(path, write=True)
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        assert f"process {other.pid} " in message


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "x") as folder:
        path = folder.path
    with holder(path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with RunFolder.open(path, write=True) as again:
            assert again.writable


def test_open_refuses_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot make a run folder"):
        RunFolder.create(tmp_path / "file", "x")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "x") as folder:
        folder.write_json("environment.json", {"a": 1})
        before = folder.environment.read_text()
        with pytest.raises(ValueError, match="not JSON compliant"):
            folder.write_json("environment.json", {"a": float("nan")})
        with pytest.raises(UnicodeEncodeError):
            folder.write_text("environment.json", "\ud800")
        assert folder.environment.read_text() == before
        folder.write_text("figures/deep/a.txt", "text")
        assert (folder.figures / "deep" / "a.txt").read_text() == "text"
        assert not list(folder.path.glob(".*.tmp"))


def test_truncate_drops_later_steps_and_the_torn_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "x") as folder:
        lines = [encode_line(MetricLine(step, 0, {"train/loss": step})) for step in range(1, 8)]
        folder.metrics.write_text("".join(lines) + lines[-1][: len(lines[-1]) // 2])
        assert [line.step for line in read_lines(folder.metrics)] == list(range(1, 8))
        folder.truncate_metrics(100)
        assert folder.metrics.read_text() == "".join(lines)
        folder.truncate_metrics(4)
        assert folder.metrics.read_text() == "".join(lines[:4])
        folder.truncate_metrics(0)
        assert folder.metrics.read_text() == ""
        folder.metrics.unlink()
        folder.truncate_metrics(4)  # killed before the first line


def test_values_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    values = {"a": float("inf"), "b": float("-inf"), "c": float("nan"), "d": 0.1}
    text = encode_line(MetricLine(1, 2, values))
    assert '"Infinity"' in text
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    (line,) = read_lines(path)
    assert repr(dict(line.metrics)) == repr(values)
