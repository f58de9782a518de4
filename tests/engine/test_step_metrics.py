"""What a method says of a step is logged as the loss of that step saw it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import Batch, LossInput, Method, Progress, StepOutput, resolve_component
from sslkit.builtin.losses import NTXent
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Silent
from sslkit.host.plugins import load_plugins
from sslkit.nn.deferred import Deferred
from sslkit.workflows.train import start
from tests.engine.test_exactness import assert_same, final_state

METHODS = sorted(entry.name for entry in load_plugins().registry.entries("method"))
"""Every registered method, with its defaults: one that is added later is held to the rule too."""
FAST = ["optimizer={name: sgd, lr: 0.5}", "schedule={name: constant}", "train.online_probe=null"]
"""Large steps from the first one on: a metric that is read too late cannot look right."""
OF_THE_ENGINE = ("loss", "lr", "epoch", "loss_scale", "grad_norm", "teacher_momentum")
WAYS = {
    "plain": [],
    "micro-batches": ["train.micro_batch_size=8"],
    "float16": ["train.precision=fp16"],
}

Seen = list[tuple[Method, dict[str, Tensor], Batch]]


def watch(monkeypatch: pytest.MonkeyPatch, cls: type[Method]) -> Seen:
    """Copies of the method, the embeddings and the batch as each call of `objective` finds them."""
    seen: Seen = []
    original = cls.objective

    def watched(
        self: Method, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        kept = {name: value.detach().clone() for name, value in embeddings.items()}
        seen.append((copy.deepcopy(self), kept, batch))
        return original(self, embeddings, batch, progress)

    monkeypatch.setattr(cls, "objective", watched)
    return seen


def logged(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of training by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"] for line in lines if "train/loss" in line["metrics"]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_metrics_are_those_of_the_step(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    cls = resolve_component(load_plugins().registry, "method", {"name": name}).cls
    objective = cls.objective
    seen = watch(monkeypatch, cls)
    changes = [f"method={{name: {name}}}", *FAST, *WAYS[way], "evaluate=[]"]
    settings = ["train.max_steps=2", "train.log_every_steps=1"]
    run = start(tiny, [*changes, *settings], display=Silent()).run_dir
    lines = logged(run)
    assert sorted(lines) == [1, 2]
    for step, (method, embeddings, batch) in enumerate(seen, start=1):
        progress = Progress(step - 1, 2, 1)
        expected = objective(method, embeddings, batch, progress).metrics
        assert set(expected) == {
            key.removeprefix("train/")
            for key in lines[step]
            if key.startswith("train/") and key.removeprefix("train/") not in OF_THE_ENGINE
        }
        for key, value in expected.items():
            assert lines[step][f"train/{key}"] == pytest.approx(float(value), rel=1e-6), key


class Watchful(SimCLR):
    """Its metrics refer to what changes: a parameter, memory that it shares, a buffer, chance."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("count", torch.zeros(()))

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        weight = next(self.head.parameters())
        return replace(
            super().objective(embeddings, batch, progress),
            metrics=Deferred(
                lambda: {
                    "weight": weight.detach().view(-1)[0],
                    "norm": weight.norm(),
                    "count": self.count,
                    "noise": torch.rand(()),
                    "plain": 1.5,
                }
            ),
        )

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.count += 1.0


def train_watchful(tiny: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> Path:
    from sslkit.builtin import simclr

    monkeypatch.setattr(simclr, "SimCLR", Watchful)
    steps = [f"train.log_every_steps={every}", "train.max_steps=4", "evaluate=[]"]
    return start(tiny, [*FAST, *steps], display=Silent()).run_dir


def test_live_tensors_are_read_before_they_change(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch, Watchful)
    lines = logged(train_watchful(tiny, monkeypatch, every=1))
    assert [lines[step]["train/count"] for step in (1, 2, 3, 4)] == [0.0, 1.0, 2.0, 3.0]
    for step, (method, _, _) in enumerate(seen, start=1):
        weight = next(method.head.parameters())  # type: ignore[operator, union-attr]
        assert lines[step]["train/weight"] == weight.view(-1)[0].item()
        assert lines[step]["train/norm"] == pytest.approx(weight.norm().item())
        assert lines[step]["train/plain"] == 1.5


def test_reading_metrics_changes_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where they draw random numbers, as drop path does after them."""
    often = train_watchful(tiny, monkeypatch, every=1)
    seldom = train_watchful(tiny, monkeypatch, every=4)
    assert_same(final_state(often)["method"], final_state(seldom)["method"])
    assert logged(often)[4]["train/noise"] == logged(seldom)[4]["train/noise"]


@pytest.mark.parametrize(("every", "expected"), [(3, 3), (1, 5)])
def test_metrics_cost_nothing_on_other_steps(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, every: int, expected: int
) -> None:
    """Of five steps 1 is checked, 3 and 5 are logged; or all are."""
    computed = []
    metrics = NTXent.metrics

    def counted(self: NTXent, inputs: LossInput) -> Mapping[str, Tensor]:
        computed.append(1)
        return metrics(self, inputs)

    monkeypatch.setattr(NTXent, "metrics", counted)
    changes = ["train.max_steps=5", f"train.log_every_steps={every}", "evaluate=[]"]
    start(tiny, changes, display=Silent())
    assert len(computed) == expected
