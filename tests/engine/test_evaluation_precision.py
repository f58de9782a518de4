"""Evaluation computes in `evaluation_precision`, float32 unless asked, whatever training does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import sslkit
from sslkit.api import Evaluation, FeatureInput
from sslkit.builtin.evaluators.knn import KNN
from sslkit.data.evaluation_images import evaluation_batches
from sslkit.engine.display import Silent
from sslkit.experiment.stores import open_stores
from sslkit.recipe import load_recipe
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.train import start

SHORT = ["train.precision=bf16", "train.max_steps=2", "augmentation.size=64"]


def seen_features(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Subject -> the features that the evaluator was given."""
    seen: dict[str, Tensor] = {}
    evaluate = KNN.evaluate

    def watch(self: KNN, given: FeatureInput) -> Evaluation:
        seen[given.subject] = given.bank.test
        return evaluate(self, given)

    monkeypatch.setattr(KNN, "evaluate", watch)
    return seen


def by_hand(run: Path) -> Tensor:
    """Features of the exported encoder in float32."""
    encoder = sslkit.load_encoder(run)
    test = open_stores(load_recipe(run / "recipe.resolved.yaml"), Silent()).test
    assert test is not None
    with torch.no_grad():
        batches = evaluation_batches(test, encoder.preprocess, 512, "cpu")
        return torch.cat([encoder(batch) for batch in batches])


@pytest.mark.slow  # 8 seconds
def test_a_bf16_run_is_measured_in_float32(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_features(monkeypatch)
    run = start(str(tiny), SHORT, display=Silent()).run_dir
    torch.testing.assert_close(seen["trained"], by_hand(run), rtol=1e-4, atol=1e-5)
    assert yaml.safe_load((run / "recipe.resolved.yaml").read_text())["evaluation_precision"] == (
        "fp32"
    )
    results = json.loads((run / "results.json").read_text())
    assert results["conditions"] == {
        "precision": "fp32", "batch_statistics": "calibrated", "no_untrained": None,
    }  # fmt: skip
    assert "Measured in float32, every encoder with" in (run / "report.md").read_text()

    exact = seen["untrained"]
    again = evaluate_run(run, None, ["evaluation_precision=bf16"], Silent()).results
    assert again.conditions is not None
    assert again.conditions.precision == "bf16"
    rounded = seen["untrained"]
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


@pytest.mark.slow  # 15 seconds
def test_fine_tuning_follows_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[bool] = set()
    forward = nn.Linear.forward

    def watch(self: nn.Linear, features: Tensor) -> Tensor:
        kinds.add(torch.is_autocast_enabled("cpu"))
        return forward(self, features)

    run = start(str(tiny), [*SHORT, "evaluate=[]"], display=Silent()).run_dir
    monkeypatch.setattr(nn.Linear, "forward", watch)
    for precision in ("fp32", "bf16"):
        kinds.clear()
        changes = ["evaluate.0.epochs=1", f"evaluation_precision={precision}"]
        evaluate_run(run, ["finetune"], changes, Silent())
        assert kinds == ({False} if precision == "fp32" else {False, True})  # False: the width
