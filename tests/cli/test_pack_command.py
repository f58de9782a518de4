"""`sslkit pack` as a user meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sslkit.cli import main
from sslkit.engine.pack_progress import TerminalPackProgress


def sslkit(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return int(exit_.value.code or 0)


def test_pack_then_verify_then_train(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "tiny.sslpack"
    assert sslkit("pack", str(tiny), "--out", str(out), "-o", "data.num_train=40") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("train: 40 images of 16 x 16 x 3\ntest: 48 images")
    assert "packing: split=train images=40 of=40 images_per_second=" in shown.err
    assert sslkit("pack", "--verify", str(out), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["shape"] == [40, 3, 16, 16]
    assert facts["splits"]["test"]["labels"] is True
    assert facts["bytes"] == out.stat().st_size
    words = ["run", str(tiny), "-o", f"data={{name: pack, file: {out}}}", "-o", "train.max_steps=2"]
    assert sslkit(*words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data"]["train"] == facts["splits"]["train"]["fingerprint"]
    assert environment["sources"]["train"]["packed_from"]["name"] == "synthetic"


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["quickstart"], 2, "--out"),
        (["--out", "x"], 2, "a recipe is needed"),
        (["quickstart", "--out", "x", "--size", "0"], 2, "--size"),
        (["quickstart", "--out", "x", "--interpolation", "cubic"], 2, "valid is bilinear or"),
        (["{name: nothing}", "--out", "x"], 2, "nothing"),
        (["{name: pack, file: gone}", "--out", "x"], 2, "gone: does not exist"),
        (["--verify", "gone"], 2, "gone: does not exist"),
        (["--verify", __file__], 1, "is not a pack"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sslkit("pack", *words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert expected in shown.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a process")
def test_control_c_keeps_what_is_done(tmp_path: Path) -> None:
    source = "{name: synthetic, num_train: 3000, num_test: 0, size: 64}"
    words = ["pack", source, "--out", str(tmp_path / "x"), "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sslkit", *words], stderr=subprocess.PIPE, text=True
    )
    journal, deadline = tmp_path / "x.journal", time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 1
    assert shown.splitlines()[-1] == "error: stopped; the same command goes on from here"
    assert "Traceback" not in shown
    assert (tmp_path / "x.partial").exists()
    assert not (tmp_path / "x").exists()


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalPackProgress("packing", sys.stdout)
    for split, total in (("train", 300), ("test", 100)):
        for done in range(0, total + 1, 100):
            progress(split, done, total)
    progress.close()
    progress.close()
    shown = capsys.readouterr().out
    assert "packing train" in shown
    assert "300/300" in shown
    assert "packing test" in shown
    assert "img/s" in shown
