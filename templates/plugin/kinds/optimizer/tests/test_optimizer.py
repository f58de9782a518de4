"""Steps that can be worked out by hand, and the state."""

from __future__ import annotations

import copy

import pytest
import torch
from sslkit.api import ParamGroup, optimizer_groups
from torch import Tensor, nn

from sslkit_newname.optimizer import NewName


def optimizer(weight: nn.Parameter, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    config = NewName.Config.model_validate({"lr": 0.1, "weight_decay": weight_decay})
    groups = optimizer_groups(config, [ParamGroup([("weight", weight)])], lr=0.1)
    return NewName(config).create(groups)


def step(made: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> None:
    weight.grad = gradient
    made.step()


def test_the_first_step_is_the_sign_of_the_gradient() -> None:
    weight = nn.Parameter(torch.zeros(1, 3))
    step(optimizer(weight), weight, torch.tensor([[5.0, -1e-3, 0.0]]))
    assert weight.tolist() == [pytest.approx([-0.1, 0.1, 0.0])]


def test_the_second_step_follows_momentum_where_it_is_stronger() -> None:
    weight = nn.Parameter(torch.zeros(1, 2))
    made = optimizer(weight)
    step(made, weight, torch.tensor([[100.0, 100.0]]))  # momentum is then 1
    step(made, weight, torch.tensor([[-8.0, -10.0]]))  # 0.9 * 1 + 0.1 * gradient
    assert weight.tolist() == [pytest.approx([-0.2, 0.0])]


def test_weight_decay_is_decoupled() -> None:
    weight = nn.Parameter(torch.ones(1, 1))
    step(optimizer(weight, weight_decay=0.5), weight, torch.zeros(1, 1))
    assert weight.item() == pytest.approx(1.0 - 0.1 * 0.5)


def test_from_its_state_it_goes_on_as_if_it_had_not_stopped() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    made = optimizer(weight)
    step(made, weight, torch.randn(4, 4))
    other = copy.deepcopy(weight)
    resumed = optimizer(other)
    resumed.load_state_dict(copy.deepcopy(made.state_dict()))
    gradient = torch.randn(4, 4)
    step(made, weight, gradient)
    step(resumed, other, gradient.clone())
    assert torch.equal(weight, other)
