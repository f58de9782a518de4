"""What is decayed, and the optimiser's state across a resume and a fork."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sslkit.api import OptimizerConfig, ParamGroup, optimizer_groups
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError, RecipeError
from sslkit.runs.checkpoint import FORMAT_WITHOUT_DIGEST, load
from sslkit.workflows.train import start


@pytest.mark.parametrize("everything", [True, False])
def test_named_parameters_are_left_out_of_weight_decay(everything: bool) -> None:
    shapes = {"net.cls_token": (1, 1, 4), "net.weight": (4, 4), "net.bias": (4,), "mask": (2, 4)}
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    groups = [ParamGroup([(name, named[name])]) for name in named]

    def decayed(*patterns: str) -> set[str]:
        config = OptimizerConfig.model_validate(
            {
                "lr": 1.0,
                "weight_decay": 0.1,
                "no_weight_decay": patterns,
                "exclude_bias_and_norm": everything,
            }
        )
        parts = optimizer_groups(config, iter(groups), 1.0)
        assert all(part["adapt"] == (part["weight_decay"] > 0) for part in parts)
        ids = {id(p) for part in parts if part["weight_decay"] > 0 for p in part["params"]}
        assert sum(len(part["params"]) for part in parts) == len(named)
        return {name for name, parameter in named.items() if id(parameter) in ids}

    weights = set(named) - {"net.bias"} if everything else set(named)
    assert decayed() == weights
    assert decayed("*.cls_token") == weights - {"net.cls_token"}
    assert decayed("net.*", "mask") == set()
    with pytest.raises(RecipeError, match=r"'cls_token' is the name of no .* like net\.cls_token"):
        decayed("cls_token")


@pytest.mark.slow  # 2 seconds
def test_a_fork_trains_with_the_rules_of_its_own_recipe(tiny: Path) -> None:
    """Moments come from the checkpoint; weight decay, betas and the like from the recipe."""
    source = start(str(tiny), ["train.max_steps=2", "evaluate=[]"], display=Silent()).run_dir
    forked = start(
        str(tiny),
        [
            "train.max_steps=4",
            "evaluate=[]",
            "optimizer.weight_decay=0.3",
            "optimizer.betas=[0.5, 0.9]",
            "train.online_probe.weight_decay=0.2",
        ],
        fork=source,
        display=Silent(),
    ).run_dir
    state = load(forked / "checkpoints" / "step-00000004.pt")
    groups = state["optimization"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.5, 0.9) for group in groups)
    assert state["probe"]["optimizer"]["param_groups"][0]["weight_decay"] == 0.2
    assert all(entry["step"] == 4 for entry in state["optimization"]["state"].values())


def test_a_fork_refuses_the_state_of_another_optimiser(tiny: Path) -> None:
    source = start(str(tiny), ["train.max_steps=2", "evaluate=[]"], display=Silent()).run_dir
    with pytest.raises(CheckpointError, match="state of another optimiser"):
        start(str(tiny), ["optimizer={name: sgd, lr: 0.1}"], fork=source, display=Silent())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("exp_avg", [1.0], "a list and a tensor of its parameter's shape"),
        ("exp_avg", torch.zeros(7, 7), "a tensor of another shape and a tensor of its parameter's"),
        ("exp_avg_sq", {}, "a dict and a tensor of its parameter's shape"),
    ],
)
def test_an_entry_unlike_the_others_is_refused(
    tiny: Path, name: str, value: object, expected: str
) -> None:
    """A checkpoint may come from anywhere; the step would fail inside torch's fused kernel."""
    overrides = ["train.max_steps=1", "evaluate=[]"]
    source = start(str(tiny), overrides, display=Silent()).run_dir / "checkpoints"
    state = load(source / "step-00000001.pt")
    state["optimization"]["state"][1][name] = value
    torch.save({**state, "format": FORMAT_WITHOUT_DIGEST}, source / "step-00000001.pt")
    with pytest.raises(CheckpointError, match=f"does not fit .*'{name}' is {expected}"):
        start(str(tiny), ["train.max_steps=2", "evaluate=[]"], fork=source.parent, display=Silent())


@pytest.mark.slow  # 12 seconds
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lars"])
def test_a_fork_may_change_the_memory_layout(tiny: Path, optimizer: str) -> None:
    """Moments saved in one layout are used in the other: the step is the same up to rounding."""
    recipe = [f"optimizer={{name: {optimizer}, lr: 0.01}}", "evaluate=[]"]
    source = start(
        str(tiny), [*recipe, "train.max_steps=2", "train.channels_last=true"], display=Silent()
    ).run_dir
    weights = []
    for layout in ("true", "false"):
        change = [*recipe, "train.max_steps=3", f"train.channels_last={layout}"]
        forked = start(str(tiny), change, fork=source, display=Silent()).run_dir
        weights.append(load(forked / "checkpoints" / "step-00000003.pt")["method"])
    for name, value in weights[0].items():
        # Of the tensor as a whole: Adam turns a gradient that is only rounding into a whole step.
        difference = torch.linalg.vector_norm(value.double() - weights[1][name].double())
        assert difference <= 1e-3 * torch.linalg.vector_norm(value.double()) + 1e-4, name
