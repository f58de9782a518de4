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

from sslkit.api import (
    Batch,
    ComponentConfig,
    Loss,
    LossInput,
    Method,
    Progress,
    StepOutput,
    resolve_component,
)
from sslkit.builtin.losses import NTXent
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Silent
from sslkit.engine.step_metrics import loss_metrics
from sslkit.errors import PluginError
from sslkit.host.plugins import load_plugins
from sslkit.nn.deferred import Deferred
from sslkit.workflows.train import start
from tests.engine.test_exactness import assert_same, final_state

METHODS = ("simclr", "byol", "moco_v1", "moco_v2", "moco_v3")
"""With their defaults; the conformance kit holds every method to the rule."""
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
        output = objective(method, embeddings, batch, progress)
        expected = {**loss_metrics(method, output), **output.metrics}
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


@pytest.mark.slow  # 2 seconds
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


class Telling(Loss):
    """A loss that says how far apart two views are, and what it was made with."""

    def __init__(self, kind: float) -> None:
        super().__init__(ComponentConfig())
        self.made_with = kind

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = inputs.views
        return (first - second).square().mean()

    def metrics(self, inputs: LossInput) -> Mapping[str, Any]:
        return {"distance": self(inputs), "made_with": self.made_with}


class TwoLosses(SimCLR):
    """Its first loss is called for every pair of directions, its second once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.near, self.far = Telling(2.0), Telling(3.0)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        one, two = embeddings["z"].unbind(dim=1)
        calls = [
            (self.near, LossInput((one, two))),
            (self.near, LossInput((one, 3.0 * two))),
            (self.far, LossInput((one, 0.0 * two))),
        ]
        loss = torch.stack([each(given) for each, given in calls]).sum()
        return StepOutput(loss, {"own": 4.0}, losses=calls)


def train_as(cls: type[SimCLR], tiny: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What training as this method logs in its first step."""
    from sslkit.builtin import simclr

    monkeypatch.setattr(simclr, "SimCLR", cls)
    settings = ["train.log_every_steps=1", "train.max_steps=1", "evaluate=[]"]
    return logged(start(tiny, [*FAST, *settings], display=Silent()).run_dir)[1]


def test_what_losses_say_is_logged_whether_or_not_the_method_hands_it_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch, TwoLosses)
    found = train_as(TwoLosses, tiny, monkeypatch)
    one, two = seen[0][1]["z"].unbind(dim=1)
    near = ((one - two).square().mean() + (one - 3.0 * two).square().mean()) / 2
    assert found["train/near/distance"] == pytest.approx(float(near), rel=1e-6)
    assert found["train/far/distance"] == pytest.approx(float(one.square().mean()), rel=1e-6)
    assert (found["train/near/made_with"], found["train/far/made_with"]) == (2.0, 3.0)
    assert found["train/own"] == 4.0
    assert "train/distance" not in found  # which of the two would it be?


def test_what_one_loss_says_has_its_plain_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneLoss(TwoLosses):
        def objective(self, *given: Any) -> StepOutput:
            output = super().objective(*given)
            return replace(output, losses=output.losses[:2], metrics={"made_with": 5.0})

    seen = watch(monkeypatch, OneLoss)
    found = train_as(OneLoss, tiny, monkeypatch)
    one, two = seen[0][1]["z"].unbind(dim=1)
    near = ((one - two).square().mean() + (one - 3.0 * two).square().mean()) / 2
    assert found["train/distance"] == pytest.approx(float(near), rel=1e-6)
    assert found["train/made_with"] == 5.0  # what the method says itself goes first


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (1.0, r"loss: \w+\.metrics gave a float; valid is a mapping of a name to a number"),
        ({"distance": "far"}, "or its loss gave the metric 'distance' as a str; valid is one"),
        ({"loss": 1.0}, "or its loss gave a metric the name 'loss'; train/loss is logged by"),
    ],
)
def test_metrics_of_a_loss_that_are_none_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, metrics: Any, message: str
) -> None:
    monkeypatch.setattr(NTXent, "metrics", lambda self, inputs: metrics)
    with pytest.raises(PluginError, match=message):
        start(tiny, ["train.max_steps=1", "evaluate=[]"], display=Silent())
