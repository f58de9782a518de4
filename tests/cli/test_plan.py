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


@pytest.mark.slow  # 5 seconds
def test_a_plan_for_several_processes_starts_none(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", str(tiny), "--nproc", "4", "-o", "train.micro_batch_size=8") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "4: 4 images each, 2 at a time; 16 in the objective of each" in text
    assert "MB for gradients on their way" in text
    assert "its messages were counted, not sent" in text
    assert "warning: --nproc: each process passes 2 images at a time" in text
    assert call("plan", str(tiny), "--nproc", "4", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["shared"]["images"] == 4
    assert plan["facts"] == {"negatives per anchor": 30}  # of the whole batch
    assert plan["first_loss"] is None
    assert any("4 processes share the batch" in line for line in plan["statements"])
    assert call("run", str(tiny), "--dry-run", "--nproc", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shared"]["processes"] == 2


@pytest.mark.slow  # 2 seconds
def test_every_process_may_pass_a_single_image(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", str(tiny), "--nproc", "16", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["shared"]["at_a_time"] == 1
    (about,) = [m for m in plan["shared"]["messages"] if m["about"] == "rows"]
    assert about["number"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nproc", "3"], "train.batch_size: 16 images cannot be shared equally by 3 processes"),
        (
            ["--nproc", "4", "-o", "train.micro_batch_size=2"],
            "train.micro_batch_size: 2 images cannot be shared equally by 4 processes",
        ),
        *(
            (["--nproc", n], f"error: --nproc: got '{n}'; valid is a whole number from 1")
            for n in ("0", "-1", "abc", "1.5", "", "9" * 12)
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(
    tiny: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    for command in (["plan", str(tiny)], ["run", str(tiny), "--dry-run"]):
        assert call(*command, *options) == 2
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow  # 3 seconds
def test_layers_that_draw_are_said_where_processes_share(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = (
        "backbone={name: timm, model: test_vit, patch_size: 4, drop_path_rate: 0.1}",
        "augmentation.size=16",
    )
    options = [word for override in vit for word in ("-o", override)]
    for processes, expected in (("2", True), ("1", False)):
        assert call("plan", str(tiny), *options, "--nproc", processes, "--json") == 0
        warnings = json.loads(capsys.readouterr().out)["warnings"]
        assert any("drop path" in warning["message"] for warning in warnings) is expected


def test_validate_prints_warnings_and_passes(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("validate", str(tiny), "-o", "method.loss.temperature=1e-30") == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == f"{tiny}: ok"
    assert f"{tiny}: warning: method.loss.temperature: 1e-30" in printed.err


@pytest.mark.parametrize(("processors", "most"), [(4, 16), (96, 96)])
def test_more_processes_than_can_be_are_refused_before_one_starts(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    processors: int,
    most: int,
) -> None:
    def start(command: object, count: int) -> int:
        return 0 if count == most else 9

    monkeypatch.setattr("os.cpu_count", lambda: processors)
    monkeypatch.setattr("sslkit.parallel.local.run_processes", start)
    assert call("run", str(tiny), "--nproc", str(most)) == 0
    assert call("run", str(tiny), "--nproc", str(most + 1)) == 2
    said = f"error: --nproc: got '{most + 1}'; valid is a whole number from 1 to {most} on this "
    assert capsys.readouterr().err == f"{said}machine\n"
