"""`sslkit verify`: exit codes and differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslkit.cli import main
from tests.report.run_folders import make_run


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *words])
    return int(exit_.value.code or 0)


def expecting(tiny: Path, expect: str) -> str:
    tiny.write_text(tiny.read_text() + f"expect: {expect}\n")
    return str(tiny)


def test_a_recipe_that_meets_its_expectations(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = expecting(tiny, "{eval/knn/top1: {at_least: 0.0, at_most: 1.0}}")
    assert call(recipe, "-o", "train.max_steps=2", "-o", "train.epochs=1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["expectations"]
    assert found["met"]
    assert row["shortfall"] == 0
    metrics = json.loads((Path(found["run_dir"]) / "results.json").read_text())["trained"][
        "metrics"
    ]
    assert row["measured"] == metrics["eval/knn/top1"]


def test_a_recipe_that_misses_them(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = expecting(tiny, "{eval/knn/top1: {at_least: 1.5}, train/nothing: {at_most: 3}}")
    assert call(recipe, "-o", "train.max_steps=2", "-o", "train.epochs=1") == 1
    out = capsys.readouterr().out
    assert "at least 1.5" in out
    assert "missed by 1." in out  # accuracies lie below 0.5 here
    assert "not measured" in out


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["expect={eval/knn/top1: {at_least: 0.6}}"]
    run = str(make_run(tmp_path, "tiny", 0, 0.625, overrides=fields))
    assert call("--run", run) == 0
    assert "0.625" in capsys.readouterr().out
    worse = str(make_run(tmp_path, "tiny", 1, 0.5, overrides=fields))
    assert call("--run", worse) == 1
    assert "missed by 0.1" in capsys.readouterr().out


def test_a_run_held_against_a_recipe(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = expecting(tiny, "{eval/knn/top1: {at_most: 0.55}}")
    settled = ["train.compile_augmentation=false"]  # as a run writes it out
    run = str(make_run(tmp_path, "tiny", 0, 0.5, overrides=settled))
    assert call(recipe, "--run", run) == 0
    assert call(recipe, "-o", "train.epochs=5", "--run", run) == 2
    assert "is a run of another recipe" in capsys.readouterr().err
    assert call("-o", "train.epochs=5", "--run", run) == 2


def test_nothing_to_verify(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(tiny)) == 2
    assert "tiny.yaml: expects nothing; add what was measured" in capsys.readouterr().err
    assert call("--run", str(make_run(tmp_path, "tiny", 0, 0.5))) == 2
    assert "expects nothing" in capsys.readouterr().err
    assert call() == 2
    assert "a recipe is needed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
