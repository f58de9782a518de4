"""Callbacks: numbers in the log and in MLflow, gradients, and what they cannot change."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import Batch, Callback, Method, Progress, RunView
from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.engine.display import Silent
from sslkit.errors import PluginError
from sslkit.workflows.train import start

SHORT = ["train.max_steps=4", "train.log_every_steps=2", "evaluate=[]"]
WATCHED = "callbacks=[{name: augmented_views}]"


class GradientNorms(Callback):
    """The gradient norm of each layer."""

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> Mapping[str, float | Tensor]:
        return {name: gradient.norm() for name, gradient in gradients.items()}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a callback in the place of `augmented_views`."""

    def replace(cls: type[Callback]) -> None:
        for hook in ("on_start", "on_batch", "on_gradients", "on_step", "on_evaluation"):
            monkeypatch.setattr(AugmentedViews, hook, getattr(cls, hook))

    return replace


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (run / "encoder.safetensors").read_bytes()


@pytest.mark.slow  # 8 seconds
def test_the_gradient_norm_of_each_layer_in_mlflow(
    tiny: Path, tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what clipping sees: the norms of the layers make the norm of the whole."""
    watch(GradientNorms)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "mlflow.db"
    tracking = f"tracking={{name: mlflow, tracking_uri: 'sqlite:///{store}'}}"
    clipped = "train.max_grad_norm=0.01"
    run = start(str(tiny), [*SHORT, WATCHED, tracking, clipped], display=Silent()).run_dir
    logged = [line for line in lines(run) if "train/loss" in line["metrics"]]
    assert [line["step"] for line in logged] == [2, 4]
    prefix = "callback/augmented_views/"
    for line in logged:
        norms = [v for k, v in line["metrics"].items() if k.startswith(prefix)]
        assert len(norms) > 10
        whole = sum(norm**2 for norm in norms) ** 0.5
        assert whole == pytest.approx(line["metrics"]["train/grad_norm"], rel=1e-5)
        assert whole > 0.01
    with sqlite3.connect(store) as database:
        (count,) = database.execute(
            "select count(*) from metrics where key like ?", (f"{prefix}%",)
        ).fetchone()
    assert count == len(norms) * 2


class Numbers(Callback):
    def on_step(
        self, run: RunView, metrics: Mapping[str, float], progress: Progress
    ) -> Mapping[str, float | Tensor]:
        return {"twice": 2 * metrics["train/loss"], "step": torch.tensor(progress.step)}

    def on_evaluation(
        self, run: RunView, metrics: Mapping[str, float], progress: Progress
    ) -> Mapping[str, float]:
        return {"seen": float(len(metrics))}


def test_numbers_that_are_returned_are_logged(tiny: Path, watch: Any) -> None:
    watch(Numbers)
    options = ["train.max_steps=12", "train.log_every_steps=6", WATCHED]
    found: dict[int, dict[str, float]] = {}
    for line in lines(start(str(tiny), options, display=Silent()).run_dir):
        found.setdefault(line["step"], {}).update(line["metrics"])
    for step in (6, 12):
        assert found[step]["callback/augmented_views/twice"] == 2 * found[step]["train/loss"]
        assert found[step]["callback/augmented_views/step"] == step
        assert found[step]["callback/augmented_views/seen"] > 0


SEEN: list[bool] = []
"""Whether gradients were recorded, at each call."""


class Random(Callback):
    """Draws random numbers and computes with parameters, at every chance."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        SEEN.append(torch.is_grad_enabled())
        torch.randn(100)

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> None:
        SEEN.append(torch.is_grad_enabled())
        torch.rand(7)


def test_a_callback_that_watches_changes_no_bit(tiny: Path, watch: Any) -> None:
    without = start(str(tiny), SHORT, display=Silent()).run_dir
    watch(Random)
    with_it = start(str(tiny), [*SHORT, WATCHED], display=Silent()).run_dir
    assert weights(without) == weights(with_it)
    assert SEEN
    assert not any(SEEN)


def _halve_a_gradient(self: Any, run: Any, gradients: Any, progress: Any) -> None:
    next(iter(gradients.values())).mul_(0.5)


def _blank_a_view(self: Any, run: Any, batch: Batch, progress: Any) -> None:
    batch.views[1].zero_()


def _keep_the_method(self: Any, run: Any, method: Method) -> None:
    self.method = method


def _write_a_weight(self: Any, run: Any, metrics: Any, progress: Any) -> None:
    next(self.method.parameters()).add_(1.0)


def _switch_the_mode(self: Any, run: Any, metrics: Any, progress: Any) -> None:
    self.method.encoder.eval()


@pytest.mark.parametrize(
    ("hook", "function", "what"),
    [
        ("on_gradients", _halve_a_gradient, "changed the gradient of "),
        ("on_batch", _blank_a_view, "changed view 1 of the batch"),
        ("on_step", _write_a_weight, "changed the parameter "),
        ("on_step", _switch_the_mode, "changed the mode of "),
        ("on_step", lambda *_: 3.0, "gave a float; valid is a mapping"),
        ("on_gradients", lambda *_: {"x": "y"}, "gave 'x' as a str; valid is one number"),
        (
            "on_gradients",
            lambda *_: {"x": torch.ones(2, 3)},
            "gave 'x' as a tensor of shape",
        ),
    ],
)
def test_a_callback_that_changes_results_ends_the_run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, hook: str, function: Any, what: str
) -> None:
    monkeypatch.setattr(AugmentedViews, "on_start", _keep_the_method)
    monkeypatch.setattr(AugmentedViews, "on_batch", Callback.on_batch)
    monkeypatch.setattr(AugmentedViews, hook, function)
    with pytest.raises(PluginError, match=f"callback 'augmented_views': .*{hook} {what}"):
        start(str(tiny), [*SHORT, WATCHED], display=Silent())
