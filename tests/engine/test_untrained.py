"""The untrained baseline has random weights, or is left out with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sslkit
from sslkit.api import Backbone
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.engine.display import Silent
from sslkit.experiment.networks import holds_weights
from sslkit.workflows.evaluate import evaluate_run, evaluate_weights
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start
from tests.displays import Heard

UNTRAINED = "eval/knn/top1_untrained"


def one_step(tiny: Path, *overrides: str, display: Silent | None = None) -> RunResult:
    return start(str(tiny), ["train.max_steps=1", *overrides], display=display or Silent())


def is_left_out(run: Path, messages: list[str]) -> None:
    """In the first lines, in the report and in the results."""
    (first,) = [text for text in messages if text.startswith("warning: no untrained baseline")]
    assert "backbone 'timm' of sslkit" in first
    assert "same weights under two seeds" in first
    assert "TimmBackbone.without_weights" in first
    assert messages.index(first) < 3
    assert "No untrained baseline: backbone 'timm'" in (run / "report.md").read_text()
    results = json.loads((run / "results.json").read_text())
    assert "same weights" in results["conditions"]["no_untrained"]
    assert UNTRAINED not in results["baselines"]["metrics"]
    assert "eval/knn/top1_pixels" in results["baselines"]["metrics"]


@pytest.mark.slow  # 3 seconds
def test_starting_weights_without_architecture(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = one_step(tiny).run_dir
    monkeypatch.setattr(TimmBackbone, "without_weights", Backbone.without_weights)
    display = Heard()
    second = one_step(tiny, f"backbone.weights={first}", display=display).run_dir
    is_left_out(second, display.messages)

    for measure in (
        lambda: evaluate_run(second, ["knn"], [], display),
        lambda: evaluate_weights(first / "encoder.safetensors", tiny, ["knn"], [], display),
    ):
        display.messages.clear()
        results = measure().results
        assert any("no untrained baseline" in text for text in display.messages)
        assert UNTRAINED not in results.baselines.metrics
        assert "eval/knn/top1" in results.trained.metrics


def test_weights_that_no_field_names(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = TimmBackbone.__init__

    def init(self: TimmBackbone, config: Any, *, channels: int, image_size: int) -> None:
        built(self, config, channels=channels, image_size=image_size)
        generator = torch.Generator().manual_seed(7)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05, generator=generator)

    monkeypatch.setattr(TimmBackbone, "__init__", init)
    display = Heard()
    is_left_out(one_step(tiny, display=display).run_dir, display.messages)


@pytest.mark.slow  # 5 seconds
def test_a_run_from_weights_has_a_random_baseline(tiny: Path) -> None:
    """And not its start: that of the same recipe without weights."""
    first = one_step(tiny)
    second = one_step(tiny, f"backbone.weights={first.run_dir}", "seed=3")
    third = one_step(tiny, "seed=3")
    assert second.metrics[UNTRAINED] == third.metrics[UNTRAINED]
    again = evaluate_run(second.run_dir, None, [], Silent()).results
    assert again.baselines.metrics[UNTRAINED] == second.metrics[UNTRAINED]
    assert sslkit.load_encoder(second.run_dir).num_features


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 8))
    net.fixed = nn.Parameter(torch.arange(60.0).sin(), requires_grad=False)  # a position embedding
    return net


def test_what_counts_as_weights() -> None:
    assert not holds_weights(network(0), network(1))
    assert holds_weights(network(0), network(0))
    partly = network(1)
    partly[2].load_state_dict(network(0)[2].state_dict())  # 240 of 900
    assert holds_weights(network(0), partly)
    frozen = network(1)
    frozen[0].load_state_dict(network(0)[0].state_dict())
    frozen[0].requires_grad_(False)
    assert holds_weights(network(0), frozen)
    rows = network(1)
    rows[0].weight.data[:15] = network(0)[0].weight.data[:15]  # half of a layer, 300 of 900
    assert holds_weights(network(0), rows)
    assert not holds_weights(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
