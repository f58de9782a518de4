"""Training in float16: the loss is scaled, steps that overflow are left out, a resume is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from sslkit.api import ParamGroup
from sslkit.builtin.optimizers import SGD
from sslkit.builtin.schedules import Constant
from sslkit.engine.display import Silent
from sslkit.engine.optimization import Optimization
from sslkit.errors import RecipeError
from sslkit.experiment.resolve import check_cuda_graphs
from sslkit.nn.compute import Compute
from sslkit.recipe.model import TrainConfig
from sslkit.runs.checkpoint import load
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start
from tests.engine.test_exactness import assert_same, final_state

FP16 = ["train.precision=fp16", "evaluate=[]", "train.log_every_steps=1"]
SMALL_SCALE = 1024.0
FLAT = "schedule={name: constant, warmup_epochs: 0}"


class Line(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(list(self.named_parameters()))]


def optimization(line: Line) -> Optimization:
    scaler = GradScaler("cpu", init_scale=SMALL_SCALE, growth_interval=2)
    sgd = SGD(SGD.Config(lr=0.5, momentum=0.0))
    schedule = Constant(Constant.Config())
    return Optimization(line, sgd, schedule, batch_size=1, scaler=scaler)  # type: ignore[arg-type]


def test_gradients_have_their_true_size_after_unscaling() -> None:
    line = Line()
    made = optimization(line)
    made.backward(3.0 * line.weight.sum())
    assert line.weight.grad is not None
    assert line.weight.grad.item() == 3.0 * SMALL_SCALE
    made.unscale()
    assert line.weight.grad.item() == 3.0
    made.step()
    assert line.weight.item() == 1.0 - 0.5 * 3.0


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_halves() -> None:
    line = Line()
    made = optimization(line)
    made.backward(1e38 * line.weight.sum())
    made.unscale()
    made.step()
    assert line.weight.item() == 1.0
    assert made.metrics() == {"loss_scale": SMALL_SCALE / 2}
    state = made.state_dict()
    other = optimization(Line())
    other.load_state_dict(state)
    assert other.metrics() == {"loss_scale": SMALL_SCALE / 2}


def fp16(recipe: Path, *overrides: str, resume: Path | None = None) -> RunResult:
    given = [] if resume else [*FP16, *overrides]
    return start(
        None if resume else recipe, given, resume=str(resume) if resume else None, display=Silent()
    )


@pytest.mark.slow  # 4 seconds
def test_a_run_trains_logs_its_scale_and_resumes_to_the_bit(tiny: Path) -> None:
    settings = ["train.max_steps=4", "train.checkpoint_every_steps=1", "train.keep_checkpoints=4"]
    whole = fp16(tiny, *settings)
    assert whole.metrics["train/loss_scale"] > 0.0
    expected = final_state(whole.run_dir)
    assert "scaler" in str(expected["optimization"])
    (whole.run_dir / "results.json").unlink()
    for step in (3, 4):
        (whole.run_dir / "checkpoints" / f"step-0000000{step}.pt").unlink()
    resumed = fp16(tiny, resume=whole.run_dir)
    assert_same(final_state(resumed.run_dir), expected)


def test_the_first_loss_is_that_of_float32_up_to_rounding(tiny: Path) -> None:
    losses = {
        precision: start(
            tiny,
            [f"train.precision={precision}", "evaluate=[]", "train.max_steps=1"],
            display=Silent(),
        ).metrics["train/loss"]
        for precision in ("fp32", "fp16")
    }
    assert losses["fp16"] != losses["fp32"]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=1e-3)


@pytest.mark.slow  # 2 seconds
def test_micro_batches_get_back_the_size_of_their_gradients(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights after a step do not depend on the scale: it went in once and came out once."""
    weights = []
    for scale in (2.0**8, 2.0**10):
        monkeypatch.setattr(
            Compute, "make_scaler", lambda _, scale=scale: GradScaler("cpu", init_scale=scale)
        )
        settings = ["train.max_steps=1", "train.micro_batch_size=4", "train.batch_size=8", FLAT]
        run = fp16(tiny, *settings, "optimizer={name: sgd, lr: 1.0, momentum: 0.0}")
        assert run.metrics["train/loss_scale"] == scale
        weights.append(load(run.run_dir / "checkpoints" / "step-00000001.pt")["method"])
    initial = start(
        tiny,
        [*FP16, "train.max_steps=1", "train.batch_size=8", "optimizer={name: sgd, lr: 1e-12}"],
        display=Silent(),
    ).run_dir
    before = load(initial / "checkpoints" / "step-00000001.pt")["method"]
    moved = {
        name: [(w[name] - before[name]).double() for w in weights]
        for name in before
        if name.endswith("weight")
    }
    assert max(float(a.abs().max()) for a, _ in moved.values()) > 1e-3
    for name, (first, second) in moved.items():
        apart = torch.linalg.vector_norm(first - second)
        assert apart <= 0.02 * torch.linalg.vector_norm(first) + 1e-6, name


@pytest.mark.slow  # 2 seconds
def test_a_fork_in_another_precision_starts_with_a_fresh_scale(tiny: Path) -> None:
    source = start(tiny, ["train.max_steps=1", "evaluate=[]"], display=Silent()).run_dir
    forked = start(tiny, [*FP16, "train.max_steps=2"], fork=source, display=Silent()).run_dir
    assert load(forked / "checkpoints" / "step-00000002.pt")["optimization"]["scaler"]


def test_cuda_graphs_are_refused_where_they_cannot_be(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.cuda_graphs: true, but the device is cpu"):
        start(tiny, ["train.cuda_graphs=true", "train.device=cpu"], display=Silent())
    eager = TrainConfig(epochs=1, batch_size=8, device="cuda", cuda_graphs=True)
    with pytest.raises(RecipeError, match="but the backbone is not compiled"):
        check_cuda_graphs(eager)
    check_cuda_graphs(eager.model_copy(update={"compile": True}))
