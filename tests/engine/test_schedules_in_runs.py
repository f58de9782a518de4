"""Scheduled numbers in a run: what the optimiser gets, what is logged, planned and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sslkit.api import Progress
from sslkit.builtin.optimizers import SGD
from sslkit.builtin.schedules import Constant
from sslkit.engine.display import Silent
from sslkit.engine.optimization import Optimization
from sslkit.errors import PluginError
from sslkit.runs.checkpoint import load
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start

COSINE = "optimizer.weight_decay={name: cosine, start: 0.04, end: 0.4}"
SHORT = ["train.max_steps=4", "train.log_every_steps=1", "evaluate=[]"]


def decay(step: int, total: int) -> float:
    return 0.4 - (0.4 - 0.04) * (1 + math.cos(math.pi * step / total)) / 2


def logged(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][key] for line in lines if key in line["metrics"]}


class Scaled(torch.nn.Linear):
    """One weight of a method, and its bias, which is not decayed."""

    def param_groups(self):  # type: ignore[no-untyped-def]
        from sslkit.api import ParamGroup

        weight, bias = (("weight", self.weight), ("bias", self.bias))
        return [ParamGroup([weight, bias], weight_decay_scale=0.5)]


def test_groups_get_the_decay_of_the_step_times_their_scale() -> None:
    config = SGD.Config(lr=1.0, weight_decay={"name": "cosine", "start": 0.04, "end": 0.4})
    made = Optimization(Scaled(2, 2), SGD(config), Constant(Constant.Config()), batch_size=1)  # type: ignore[arg-type]
    for step in (0, 3, 10):
        made.set_rules(Progress(step, 10, 10))
        found = [group["weight_decay"] for group in made.optimizer.param_groups]
        assert found == [pytest.approx(0.5 * decay(step, 10)), 0.0]


@pytest.mark.slow  # 2 seconds
def test_values_in_use_are_logged_where_they_vary(tiny: Path) -> None:
    run = start(str(tiny), [*SHORT, COSINE], display=Silent()).run_dir
    expected = {step: decay(step - 1, 4) for step in (1, 2, 3, 4)}
    assert logged(run, "train/weight_decay") == pytest.approx(expected)
    (weights, _) = load(run / "checkpoints" / "step-00000004.pt")["optimization"]["param_groups"]
    assert weights["weight_decay"] == pytest.approx(decay(3, 4))
    constant = start(str(tiny), SHORT, display=Silent()).run_dir
    assert logged(constant, "train/weight_decay") == {}


@pytest.mark.slow  # 3 seconds
def test_a_resumed_run_has_the_same_bits(tiny: Path) -> None:
    """The schedule is a function of the step: nothing of it is in the checkpoint."""
    options = [COSINE, "method.loss.temperature={name: linear, start: 0.5, end: 0.1}", *SHORT]
    straight = start(str(tiny), options, display=Silent()).run_dir
    half = start(str(tiny), [*options, "train.checkpoint_every_steps=2"], display=Silent()).run_dir
    (half / "results.json").unlink()
    (half / "checkpoints" / "step-00000004.pt").unlink()
    resumed = start(str(tiny), options, resume=half, display=Silent()).run_dir
    one, two = (load(run / "checkpoints" / "step-00000004.pt") for run in (straight, resumed))
    for name, value in one["method"].items():
        assert torch.equal(value, two["method"][name]), name
    assert logged(resumed, "train/temperature") == logged(straight, "train/temperature")


def test_the_plan_shows_the_curve(tiny: Path) -> None:
    plan = make_plan(str(tiny), ["train.max_steps=11", "evaluate=[]", COSINE], Silent()).to_json()
    points = plan["curves"]["weight_decay"]
    assert [point["step"] for point in points] == list(range(11))
    assert points[0]["value"] == pytest.approx(0.04)
    assert points[-1]["value"] == pytest.approx(decay(10, 11))
    assert make_plan(str(tiny), ["train.max_steps=1", "evaluate=[]"], Silent()).curves == {}


def test_a_schedule_that_leaves_the_bounds_is_refused_before_the_run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslkit.builtin.schedules import Cosine

    monkeypatch.setattr(Cosine, "factor", lambda self, progress: 3.0)
    wrong = ["optimizer.weight_decay={name: cosine, start: 0.1, end: 0.2}", *SHORT]
    with pytest.raises(PluginError, match=r"weight_decay: .*'cosine' comes to -0.1 after 0 of 4"):
        start(str(tiny), wrong, display=Silent())
