"""`sslkit compare` of weights that were only measured, and what a comparison would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.workflows.evaluate import evaluate_weights
from sslkit.workflows.train import start


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *words])
    return int(exit_.value.code or 0)


def measured(recipe: Path, name: str, seed: int) -> tuple[Path, float]:
    """The folder of weights that were measured, and their kNN accuracy."""
    torch.manual_seed(seed)
    file = recipe.parent / f"{name}.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    found = evaluate_weights(file, recipe, None, [], Silent())
    assert found.kept is not None
    return found.kept, found.results.trained.metrics["eval/knn/top1"]


@pytest.mark.slow  # 6 seconds
def test_weights_beside_a_run(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tiny, ["train.max_steps=3"], display=Silent())
    (one, first), (two, second) = measured(tiny, "one", 1), measured(tiny, "two", 2)
    out = tmp_path / "out"
    words = [str(one), str(two), str(run.run_dir), "--map", "pca", "--out", str(out)]
    assert call(*words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["arm"]: row for row in document["accuracies"] if row["metric"].endswith("knn/top1")}
    assert rows["eval-one"]["values"] == {"0": first}
    assert rows["eval-two"]["values"] == {"0": second}
    assert rows["tiny"]["values"] == {"0": run.metrics["eval/knn/top1"]}
    assert document["baseline"] == "eval-one"
    page = (out / "comparison.html").read_text()
    assert "no map and no neighbours" not in page
    assert call(*words, "--match", "time", "--json") == 2
    assert "was measured and not trained" in capsys.readouterr().err


@pytest.mark.slow  # 2 seconds
def test_weights_alone_have_no_cost(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(measured(tiny, name, seed)[0]) for name, seed in (("one", 1), ("two", 2))]
    words = ["--map", "none", "--neighbours", "0", "--out", str(tmp_path / "out")]
    assert call(*folders, *words) == 0
    shown = capsys.readouterr().out
    assert "eval-one" in shown
    assert "nan" not in shown


@pytest.mark.slow  # 2 seconds
def test_other_data_and_settings_are_refused_for_weights_too(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = measured(tiny, "one", 1)
    run = start(tiny, ["train.max_steps=1", "evaluate.0.k=7"], display=Silent())
    assert call(str(folder), str(run.run_dir)) == 2
    assert "protocol knn has k 5 in one and 7 in the other" in capsys.readouterr().err


@pytest.mark.slow  # interpreters that import torch, for each arm
def test_a_dry_run_says_what_all_runs_would_take(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [str(tiny), "--vary", "method.loss.temperature=0.1,0.5", "--out", str(out)]
    small = ["-o", "train.max_steps=2"]
    assert call(*words, *small, "--seeds", "3", "--dry-run", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [arm["missing_seeds"] for arm in found["arms"]] == [[0, 1, 2], [0, 1, 2]]
    assert (found["runs"], found["steps"]) == (6, 12)
    for total in ("seconds", "disk_mb"):
        expected = sum(3 * arm[total] for arm in found["arms"])
        assert found[total] == pytest.approx(expected)
        assert expected > 0
    assert not out.exists()
    assert not (tmp_path / "runs").exists()
    first = ["-o", "train.max_steps=2", "--map", "none", "--neighbours", "0", "--json"]
    assert call(*words, *first) == 0
    capsys.readouterr()
    assert call(*words, *small, "--seeds", "3", "--dry-run") == 0
    shown, said = capsys.readouterr()
    assert said.count("data: synthetic") == 1  # both arms have it
    assert "all runs" in shown
    assert "Nothing was trained or kept" in shown
    assert call(*words, *small, "--seeds", "3", "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["steps"]) == (4, 8)  # one seed of each arm is there
    assert call(*words, "-o", "train.num_workers=3", "--dry-run") == 2
    assert "in sslkit it is train.loader_threads" in capsys.readouterr().err
