"""`sslkit runs ...` as a user meets it: tables that fit, JSON, paths for a shell, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from sslkit.cli import main
from sslkit.report.run_table import age, size
from sslkit.runs.folder import RunFolder
from tests.workflows.made_runs import make_run


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, output, errors) of the command."""
    with pytest.raises(SystemExit) as end:
        main(words)
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


def on_a_terminal(width: int, *words: str) -> str:
    """What the command shows on a terminal so wide."""
    shown, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, width))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"TERM": "xterm"}
    command = [sys.executable, "-m", "sslkit", *words]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment):
        os.close(terminal)
        text = b""
        while True:
            try:
                text += os.read(shown, 1 << 16)
            except OSError:  # its end
                break
    os.close(shown)
    return re.sub(r"\x1b\[\d*m", "", text.decode().replace("\r\n", "\n"))


def rows(text: str, prefix: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(prefix)]


def test_the_table_shows_scores_in_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"knn/top1": 0.512, "knn/mean_per_class": 0.4, "linear/top1": 0.6}
    make_run(tmp_path, "done", results=scores)
    make_run(tmp_path, "cut")
    code, out, _ = call(capsys, "runs", "list", str(tmp_path))
    assert code == 0
    [heads] = rows(out, "run ")
    assert heads.split() == [
        "run",
        "state",
        "age",
        "step",
        "method",
        "knn",
        "top1",
        "linear",
        "top1",
    ]
    [done] = rows(out, "done-")
    assert done.split()[1] == "finished"
    assert done.split()[-4:] == ["10/10", "simclr", "51.2", "60.0"]
    [cut] = rows(out, "cut-")
    assert cut.split()[-4:] == ["4/10", "simclr", "-", "-"]
    assert "stale: 1 ended without a word" in out


def test_the_metric_that_runs_are_sorted_by_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "b", results={"knn/top1": 0.5}, loss=2.5)
    make_run(tmp_path, "a", results={"knn/top1": 0.7}, loss=3.5)
    _, out, _ = call(capsys, "runs", "list", str(tmp_path), "--sort", "train/loss")
    assert [line[:2] for line in rows(out, "a-") + rows(out, "b-")] == ["a-", "b-"]
    assert out.index("b-2026") < out.index("a-2026")
    assert rows(out, "b-")[0].split()[-2:] == ["2.5", "50.0"]


@pytest.mark.parametrize(("width", "heads"), [
    (80, ["run", "state", "age", "step", "knn", "top1"]),
    (120, ["run", "state", "age", "step", "method", "knn", "top1", "linear", "top1"]),
])  # fmt: skip
def test_names_stay_whole_on_a_terminal(tmp_path: Path, width: int, heads: list[str]) -> None:
    path = make_run(tmp_path, "simclr-r18-c10", results={"knn/top1": 0.512, "linear/top1": 0.6})
    out = on_a_terminal(width, "runs", "list", str(tmp_path))
    assert rows(out, "run ")[0].split() == heads
    assert rows(out, path.name)
    assert max(len(line) for line in out.splitlines() if "too narrow" not in line) <= width
    assert ("too narrow for: linear top1, method" in out) is (width == 80)


def test_control_characters_reach_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = make_run(tmp_path, "\x1b[31mred\x07", status="failed", params={"method.name": "\x1b[2J"})
    RunFolder(odd).not_finite.write_text(json.dumps({"step": 1, "first": "\x1b]0;title\x07"}))
    RunFolder(odd).environment.write_text(
        json.dumps({"command": ["x", "\x1b[1m"], "device": "\x9b"})
    )
    odd_scores = {"\x1b[7m/top1": 0.5, "[red]x/top1": 0.5, "y" * 4_000 + "/top1": 0.5}
    measured = make_run(tmp_path, "odd", results=odd_scores)
    damaged = make_run(tmp_path, "\x1b[5mblink")
    RunFolder(damaged).tracker.write_text('{"\x1b": 1, "\x1b": 2}'.replace("\x1b", "\\u001b"))
    for words in (["list", str(tmp_path)], ["clean", str(tmp_path)],
                  ["show", str(odd)], ["show", str(damaged)], ["show", str(measured)],
                  ["list", str(tmp_path), "--json"]):  # fmt: skip
        _, out, err = call(capsys, "runs", *words)
        assert not {"\x1b", "\x07", "\x9b"} & set(out + err), words
        assert "31mred" in out or "5mblink" in out or "[red]x" in out
        assert "--json" in words or max(map(len, out.splitlines())) < 2_000


def test_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path, results={"knn/top1": 0.5}, checkpoints=1)
    [found] = json.loads(call(capsys, "runs", "list", str(tmp_path), "--json")[1])
    assert (found["path"], found["state"], found["recipe_hash"]) == (
        str(path), "finished", "ab" * 8,
    )  # fmt: skip
    assert found["metrics"] == {"train/loss": 2.0, "train/lr": 0.1, "eval/knn/top1": 0.5}
    shown = json.loads(call(capsys, "runs", "show", str(path), "--json")[1])
    assert shown["scores"][0]["values"]["trained"]["low"] == 0.1
    assert shown["saved"] == ["step-00000001.pt"]
    assert [step["command"].split()[:2] for step in shown["next"]] == [
        ["less", f"{path}/report.md"], ["sslkit", "eval"], ["sslkit", "export"],
        ["sslkit", "reproduce"],
    ]  # fmt: skip
    best = json.loads(call(capsys, "runs", "best", "eval/knn/top1", str(tmp_path), "--json")[1])
    assert (best["value"], best["among"], best["run"]["name"]) == (0.5, 1, path.name)
    cleaned: dict[str, Any] = json.loads(call(capsys, "runs", "clean", str(tmp_path), "--json")[1])
    assert cleaned == {"done": False, "failed": 0, "removals": [], "kept": []}


def test_the_path_of_the_best_run_is_for_a_shell(tmp_path: Path) -> None:
    """To the byte: a name may hold what no terminal should see."""
    make_run(tmp_path, "low", results={"knn/top1": 0.2})
    best = make_run(tmp_path, "b\udcff \x1b[1m", results={"knn/top1": 0.4})
    script = '[ -d "$("$@")" ] && "$@"'
    command = [sys.executable, "-m", "sslkit", "runs", "best", "eval/knn/top1", str(tmp_path)]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command, "--path"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, os.fsencode(best) + b"\n", b"")


def test_show_names_the_scores_with_their_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path, results={"knn/top1": 0.5})
    _, out, _ = call(capsys, "runs", "show", str(path))
    assert rows(out, "knn top1")[0].split() == ["knn", "top1", "50.0", "[10.0,", "90.0]", "-", "-"]
    assert rows(out, "step ")[0].split()[1:] == ["10", "of", "10"]
    assert f"make it once more: sslkit reproduce {path}" in out


@pytest.mark.parametrize(
    ("status", "checkpoints", "processes", "expected"),
    [
        ("killed", 2, 1, "go on from step-00000002: {}sslkit run --resume {}"),
        (None, 1, 2, "go on from step-00000001: {}sslkit run --resume {} --nproc 2"),
        ("failed", 0, 1, "begin again (nothing was saved): {}sslkit run --resume {}"),
    ],
)
def test_show_says_how_to_go_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: str | None,
    checkpoints: int,
    processes: int,
    expected: str,
) -> None:
    path = make_run(tmp_path, status=status, checkpoints=checkpoints)
    home = tmp_path / "my experiments"
    home.mkdir()
    known = {"processes": processes, "working_directory": str(home)}
    RunFolder(path).environment.write_text(json.dumps(known))
    _, out, _ = call(capsys, "runs", "show", str(path))
    assert out.splitlines()[-1] == expected.format(f"cd '{home}' && ", path)


@pytest.mark.parametrize(("subject", "heading"), [("pixels", "pixels"), ("raw", "raw")])
def test_the_baseline_has_the_name_that_it_has_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], subject: str, heading: str
) -> None:
    path = make_run(tmp_path, "done", results={"knn/top1": 0.5, "linear/top1": 0.6})
    results = json.loads((path / "results.json").read_text())
    estimate = {"value": 0.25, "low": None, "high": None, "draws": 1, "images": 48}
    results["comparison"][1]["values"][subject] = estimate
    (path / "results.json").write_text(json.dumps(results))
    _, out, _ = call(capsys, "runs", "show", str(path))
    (heads,) = rows(out, "score")
    assert heads.split() == ["score", "trained", "untrained", heading]
    assert rows(out, "linear")[0].endswith("25.0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere"], "no such run folder"),
        (["list", "nowhere"], "No such file or directory; name a folder of runs"),
        (["list", "--sort", "eval/knn"], "none of these runs has 'eval/knn'; valid is age, name"),
    ],
)
def test_a_wrong_input_ends_with_2_and_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    make_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "runs", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_what_cannot_be_removed_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only")))
    code, out, _ = call(capsys, "runs", "clean", str(tmp_path), "--yes")
    assert code == 1
    assert f"{path}: could not be removed: Read-only" in out
    assert "1 could not be removed" in out


@pytest.mark.slow  # 3 seconds
def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = make_run(tmp_path, results={"knn/top1": 0.5})
    for words in (["list", str(tmp_path)], ["best", "eval/knn/top1", str(tmp_path)],
                  ["show", str(path)], ["clean", str(tmp_path), "--yes"]):  # fmt: skip
        program = (
            "import sys\nfrom sslkit.cli import main\n"
            f"try: main({['runs', *words]!r})\nexcept SystemExit as end: assert not end.code\n"
            "print(sorted({'torch', 'numpy', 'yaml', 'mlflow'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", (words, done.stderr)


def test_units() -> None:
    assert [age(s) for s in (0, 59, 60, 3599, 7200, 90000)] == [
        "0 s", "59 s", "1 min", "60 min", "2 h", "1 d",
    ]  # fmt: skip
    assert [size(n) for n in (999, 1000, 2_500_000, 3 * 10**9)] == [
        "999 B", "1.0 kB", "2.5 MB", "3.0 GB",
    ]  # fmt: skip
