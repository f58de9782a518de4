"""Numbers that are not finite end a run with what was so first, and nothing of them is kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_numbers import CAUSES, Faults
from torch import nn
from typer.testing import CliRunner

from sslkit.builtin.simclr import SimCLR
from sslkit.cli.app import app
from sslkit.engine.display import Silent
from sslkit.engine.optimization import Optimization
from sslkit.errors import TrainingError
from sslkit.runs.checkpoint import Checkpoints, load
from sslkit.workflows.plan import make_plan
from sslkit.workflows.replay import replay
from sslkit.workflows.train import start

SHORT = ["evaluate=[]", "train.max_steps=4", "train.checkpoint_every_steps=1"]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize("at", [2, 4])
@pytest.mark.parametrize("part", CAUSES)
def test_what_was_first_is_named(
    tiny: Path, only_run: Callable[[], Path], faults: Faults, part: str, at: int
) -> None:
    """Also in the last step, after which nothing would be trained any more."""
    getattr(faults, part)()
    faults.at = at
    with pytest.raises(TrainingError) as caught:
        start(str(tiny), SHORT, display=Silent())
    message = str(caught.value)
    assert "\n" not in message
    expected, when = CAUSES[part]
    assert re.search(expected, message), message
    assert message.startswith(f"{when} {at}:")
    run_dir = only_run()
    assert not (run_dir / "encoder.safetensors").exists()
    for path in (run_dir / "checkpoints").iterdir():
        state = load(path)
        assert state["step"] < at
        values = [v for v in state["method"].values() if v.is_floating_point()]
        assert all(bool(value.isfinite().all()) for value in values)
    record = json.loads((run_dir / "not_finite.json").read_text())
    assert record["step"] == at
    assert len(record["batch_indices"]) == 16


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize("part", ["activation", "optimizer", "loss", "gradient", "buffer"])
def test_a_dry_resume_repeats_the_step_and_names_the_module(
    tiny: Path, only_run: Callable[[], Path], faults: Faults, part: str
) -> None:
    """From a checkpoint two steps earlier: the steps between follow from it."""
    getattr(faults, part)()
    faults.at = 4
    with pytest.raises(TrainingError):
        start(str(tiny), [*SHORT[:2], "train.checkpoint_every_steps=2"], display=Silent())
    run_dir = only_run()
    before = sorted(path.name for path in run_dir.rglob("*"))
    expected, when = CAUSES[part]
    with pytest.raises(TrainingError, match=f"{when} 4: .*{expected}") as error:
        replay(run_dir, [], Silent())
    assert "--dry-run" not in str(error.value)  # not the command that was just given
    assert str(run_dir / "checkpoints" / "step-00000002.pt") in str(error.value)
    assert sorted(path.name for path in run_dir.rglob("*")) == before
    faults.at = -1  # mended
    found = CliRunner().invoke(app, ["run", "--resume", str(run_dir), "--dry-run", "--json"])
    assert found.exit_code == 0
    assert json.loads(found.stdout)["from_step"] == 2
    assert json.loads(found.stdout)["to_step"] == 4


def test_a_dry_resume_of_a_sound_run_takes_one_step(tiny: Path) -> None:
    short = [*SHORT, "train.log_every_steps=1"]
    run_dir = start(str(tiny), short, display=Silent()).run_dir
    (run_dir / "checkpoints" / "step-00000004.pt").unlink()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [x["metrics"] for x in lines if x["step"] == 4 and "train/loss" in x["metrics"]]
    found = replay(run_dir, [], Silent())
    assert (found.from_step, found.to_step, found.recorded) == (3, 4, None)
    assert found.last_loss == logged["train/loss"]  # the same bits


def test_weights_that_are_not_finite_are_refused_at_the_start(tiny: Path, tmp_path: Path) -> None:
    import timm

    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    state["layer1.0.conv1.weight"][0] = math.nan
    torch.save(state, tmp_path / "weights.pth")
    changes = [f"backbone.weights={tmp_path / 'weights.pth'}", *SHORT]
    for begin in (lambda: start(str(tiny), changes, display=Silent()),
                  lambda: make_plan(str(tiny), changes, Silent())):  # fmt: skip
        with pytest.raises(TrainingError) as caught:
            begin()
        assert "before step 1: the weights 'backbone.model.layer1.0.conv1" in str(caught.value)
        assert "weights.pth, from which the backbone starts" in str(caught.value)
        assert "optimizer.lr" not in str(caught.value)


def test_a_temperature_that_is_too_small_is_named(tiny: Path) -> None:
    with pytest.raises(TrainingError, match=r"see method\.loss\.temperature=1e-30") as caught:
        start(str(tiny), [*SHORT, "method.loss.temperature=1e-30"], display=Silent())
    assert "lower optimizer.lr" not in str(caught.value)


@pytest.mark.slow  # 2 seconds
def test_a_checkpoint_that_is_not_finite_is_refused(tiny: Path) -> None:
    """As earlier versions may have written one."""
    run_dir = start(str(tiny), SHORT, display=Silent()).run_dir
    (run_dir / "results.json").unlink()
    newest = max((run_dir / "checkpoints").iterdir())
    state = load(newest)
    next(iter(state["method"].values()))[0] = math.nan
    kept = {key: value for key, value in state.items() if key not in ("format", "step")}
    Checkpoints(newest.parent, keep=2).save(4, kept)
    with pytest.raises(TrainingError, match=r"before step 5: .* the checkpoint that this run goes"):
        start(None, [], resume=str(run_dir), display=Silent())


def test_an_infinite_mask_is_no_fault(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = SimCLR.__init__

    def with_mask(self: SimCLR, *args: Any) -> None:
        make(self, *args)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    monkeypatch.setattr(SimCLR, "__init__", with_mask)
    assert start(str(tiny), SHORT, display=Silent()).status == "finished"


def test_the_norm_of_the_gradient_is_logged_as_it_was_before_clipping(tiny: Path) -> None:
    logged = []
    for clip in ([], ["train.max_grad_norm=1e-6"]):
        short = ["evaluate=[]", "train.max_steps=1", *clip]
        logged.append(start(str(tiny), short, display=Silent()).metrics["train/grad_norm"])
    assert logged[0] == logged[1] > 1e-3


def test_the_norm_is_that_of_torch() -> None:
    from sslkit.api import ParamGroup
    from sslkit.builtin.optimizers import SGD
    from sslkit.builtin.schedules import Constant

    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layers.param_groups = lambda: [ParamGroup(list(layers.named_parameters()))]  # type: ignore[assignment]
    made = Optimization(layers, SGD(SGD.Config(lr=0.1)), Constant(Constant.Config()), batch_size=1)  # type: ignore[arg-type]
    layers(torch.randn(5, 3)).square().sum().backward()
    flat = torch.cat([p.grad.flatten() for p in layers.parameters() if p.grad is not None])
    torch.testing.assert_close(made.clip(), flat.norm())
