"""`sslkit plan`, and the warnings of other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslkit.cli import main


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return int(exit_.value.code or 0)


def test_plan_as_text_and_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "evaluate.0.k=20"
    assert call("plan", str(tiny), "-o", wrong) == 0
    text = capsys.readouterr()
    assert "name: tiny" in text.out
    first = next(line for line in text.out.splitlines() if line.strip())
    assert first.split() == ["plan", "tiny"]  # the table comes before all else
    lines = [line.split()[:2] for line in text.out.splitlines()]
    assert lines.index(["recipe", "hash"]) < lines.index(["learning", "rate"])
    assert "median of" in text.out
    assert "warning: evaluate.0.k: 20 neighbours are more than" in text.out
    assert call("plan", str(tiny), "-o", wrong, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["time"]["step_seconds"] > 0
    (warning,) = plan["warnings"]
    assert warning["path"] == "evaluate.0.k"
    assert not (tiny.parent / "runs").exists()


def test_a_dry_run_shows_the_same_plan_without_measuring(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", str(tiny), "--dry-run", "-o", "evaluate.0.k=20") == 0
    out = capsys.readouterr().out
    assert "warning: evaluate.0.k" in out
    assert "took one step" in out
    assert "median of" not in out


def test_plan_refuses_what_run_refuses(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", str(tiny), "-o", "train.batch_size=97") == 2
    assert "train.batch_size: 97 is more than the 96" in capsys.readouterr().err
    assert call("plan", "nowhere.yaml") == 2


def test_validate_prints_warnings_and_passes(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("validate", str(tiny), "-o", "method.loss.temperature=1e-30") == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == f"{tiny}: ok"
    assert f"{tiny}: warning: method.loss.temperature: 1e-30" in printed.err
