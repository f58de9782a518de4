"""Evaluators that fine-tune, in a real run: from the recipe to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sslkit.api import RunFacts
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.recipe import load_recipe
from sslkit.recipe.model import components_with_facts
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start

PROTOCOLS = (
    "evaluate=[{name: finetune, epochs: 2, batch_size: 24, layer_decay: 0.7},"
    "{name: semi_supervised, fractions: [0.25], epochs: [2], draws: 2, from_layer: 1},"
    "{name: linear, layer: 2, l2: [0.1, 0.01]}]"
)


@pytest.mark.slow  # 6 seconds
def test_a_run_measures_reports_and_repeats_them(tiny: Path) -> None:
    result = start(str(tiny), [PROTOCOLS, "train.epochs=1"], display=Silent())
    names = (
        "finetune/top1", "finetune/train_loss", "semi_supervised/top1_25pct_finetune_projector_1",
        "semi_supervised/top1_25pct_probe_projector_1", "linear/top1_projector_2",
    )  # fmt: skip
    for name in names:
        assert f"eval/{name}" in result.metrics
        assert f"eval/{name}_untrained" in result.metrics
        assert f"eval/{name}_pixels" not in result.metrics
    assert result.metrics["perf/evaluation_seconds_finetune"] > 0.0
    report = (result.run_dir / "report.md").read_text()
    assert "top1_25pct_finetune_projector_1" in report
    saved = json.loads((result.run_dir / "results.json").read_text())
    assert not saved["trained"]["skipped"]
    draws = saved["trained"]["evaluations"]["trained"]["semi_supervised"]["draws"]
    assert len(draws["top1_25pct_finetune_projector_1"]) == 2

    again = evaluate_run(result.run_dir, ["finetune"], [], Silent())
    (row,) = (row for row in again.results.rows if row.metric == "top1")
    assert row.values["trained"].value == result.metrics["eval/finetune/top1"]
    assert row.values["untrained"].value == result.metrics["eval/finetune/top1_untrained"]


@pytest.mark.slow  # 2 seconds
def test_fine_tuning_alone_trains_no_probe_on_the_side(tiny: Path) -> None:
    protocols = "evaluate=[{name: finetune, epochs: 1, batch_size: 24, every_epochs: 1}]"
    changes = [protocols, "train.epochs=2"]
    result = start(str(tiny), changes, display=Silent())
    assert "eval/finetune/top1" in result.metrics
    assert "perf/evaluation_seconds_calibration" in result.metrics
    assert "perf/evaluation_seconds_features" not in result.metrics
    assert "eval/online_probe/top1" not in result.metrics
    saved = json.loads((result.run_dir / "results.json").read_text())
    assert not any(part.startswith("features/") for part in saved["trained"]["timings"])


def test_a_layer_that_the_head_lacks_is_refused_before_the_first_step(
    tiny: Path, tmp_path: Path
) -> None:
    protocols = "evaluate=[{name: knn, k: 5}, {name: linear, layer: 3}]"
    with pytest.raises(RecipeError, match=r"evaluate\.1: linear asks for layer 3.*gives 2 layers"):
        start(str(tiny), [protocols], display=Silent())
    assert not list((tmp_path / "runs").glob("*")), "no folder is left behind"


def test_parts_of_an_evaluator_are_judged_by_its_own_steps(tiny: Path) -> None:
    fields = (
        "{name: finetune, epochs: 5, batch_size: 48, schedule: {name: cosine, warmup_epochs: 2}}"
    )
    recipe = resolve(load_recipe(str(tiny), [f"evaluate=[{fields}]"]))
    facts = check(recipe)
    found: dict[str, RunFacts] = {
        path: known for path, _, known in components_with_facts(recipe, facts)
    }
    assert found["evaluate.0"] == facts
    for part in ("optimizer", "schedule"):
        inside = found[f"evaluate.0.{part}"]
        assert (inside.batch_size, inside.steps_per_epoch, inside.total_steps) == (48, 2, 10)
    assert found["optimizer"] == found["schedule"] == facts


def test_a_plan_states_the_cost(tiny: Path) -> None:
    plan = make_plan(str(tiny), ["evaluate=[{name: finetune}]"], Silent(), measure=True).to_json()
    assert plan["time"]["evaluations"] == 0, "no features are taken"
    assert plan["facts"]["fine-tuning"].startswith("30 epochs, 2,880 images")
    assert any("times the images" in warning["message"] for warning in plan["warnings"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_in_bfloat16_and_channels_last(tiny: Path) -> None:
    changes = [PROTOCOLS, "train.epochs=1", "train.device=cuda", "train.precision=bf16"]
    result = start(str(tiny), changes, display=Silent())
    assert 0.0 <= result.metrics["eval/finetune/top1"] <= 1.0
    assert result.metrics["eval/finetune/train_loss"] > 0.0
