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
from torch import Tensor, nn
from typer.testing import CliRunner

from sslkit.api import LossInput, Progress
from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.losses import NTXent
from sslkit.builtin.mlp_head import MLPHead
from sslkit.builtin.simclr import SimCLR
from sslkit.cli.app import app
from sslkit.engine.display import Silent
from sslkit.engine.optimization import Optimization
from sslkit.errors import TrainingError
from sslkit.nn.functional import nt_xent
from sslkit.runs.checkpoint import Checkpoints, load
from sslkit.workflows.plan import make_plan
from sslkit.workflows.replay import replay
from sslkit.workflows.train import start

SHORT = ["evaluate=[]", "train.max_steps=4", "train.checkpoint_every_steps=1"]


def spoil_one(tensor: Tensor) -> None:
    tensor[(0,) * tensor.ndim] = math.nan


class Faults:
    """Breaks one step (counted from 1) of any run, in one of its parts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.at = -1
        self.now = 0
        begin = SimCLR.before_step

        def before_step(method: SimCLR, progress: Progress) -> None:
            self.now = progress.step + 1
            begin(method, progress)

        patch.setattr(SimCLR, "before_step", before_step)

    def on(self) -> bool:
        return self.now == self.at

    def loss(self) -> None:
        def forward(loss: NTXent, inputs: LossInput) -> Tensor:
            value = nt_xent(inputs.views[0], inputs.views[1], 0.5)
            return value * (math.nan if self.on() else 1.0)

        self.patch.setattr(NTXent, "forward", forward)

    def activation(self) -> None:
        forward = MLPHead.forward

        def broken(head: MLPHead, features: Tensor) -> Tensor:
            return forward(head, features) + (math.inf if self.on() else 0.0)

        self.patch.setattr(MLPHead, "forward", broken)

    def gradient(self) -> None:
        """The loss stays as it was: its gradient alone is NaN."""

        def forward(loss: NTXent, inputs: LossInput) -> Tensor:
            z = inputs.views[0]
            if self.on():
                z = z + (z - z.detach()).abs().sqrt()  # 0, with the gradient inf * 0
            return nt_xent(z, inputs.views[1], 0.5)

        self.patch.setattr(NTXent, "forward", forward)

    def after_backward(self) -> None:
        def spoil(method: SimCLR, progress: Progress) -> None:
            if self.on():
                spoil_one(next(method.backbone.parameters()).grad)

        self.patch.setattr(SimCLR, "after_backward", spoil)

    def optimizer(self) -> None:
        step = Optimization.step

        def spoil(optimization: Optimization) -> None:
            step(optimization)
            if self.on():
                spoil_one(optimization.groups[0].params[0][1].data)

        self.patch.setattr(Optimization, "step", spoil)

    def buffer(self) -> None:
        def spoil(method: SimCLR, progress: Progress, carry: Any) -> None:
            if self.on():
                norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
                norms[0].running_var[0] = math.inf

        self.patch.setattr(SimCLR, "after_step", spoil)

    def input(self) -> None:
        photometric = SimCLRAugmentation.photometric

        def spoil(augmentation: Any, view: int, images: Tensor, params: Any) -> Tensor:
            made = photometric(augmentation, view, images, params)
            # The views of a step are made before `before_step` is called.
            return made * math.nan if view == 1 and self.now == self.at - 1 > 0 else made

        self.patch.setattr(SimCLRAugmentation, "photometric", spoil)


CAUSES = {
    "loss": (r"the output of loss \(NTXent\) is nan; see method\.loss\.temperature", "step"),
    "activation": (r"the output of head \(MLPHead\) is inf", "step"),
    "gradient": (
        r"the gradient at the input of loss \(NTXent\) is nan, though the loss is",
        "step",
    ),
    "after_backward": (r"the gradient of 'backbone\.model\.conv1\.0\.weight' was nan", "step"),
    "optimizer": (
        r"the weights 'backbone\.[\w.]+' hold nan, made so by the optimiser",
        "after step",
    ),
    "buffer": (r"the buffer 'backbone\.[\w.]+running_var' holds inf, loss and grad", "after step"),
    "input": (r"view 1 of the batch holds nan", "step"),
}


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


@pytest.mark.parametrize("part", ["loss", "activation", "gradient", "optimizer", "buffer"])
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
