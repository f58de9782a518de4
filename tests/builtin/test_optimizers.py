"""The optimiser components: what they create, and that foreach changes no bit on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sslkit.api import Optimizer
from sslkit.builtin.optimizers import LARS, SGD, Adam, AdamW
from sslkit.nn import lars


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 5), (3, 2, 3, 3), (11, 13))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """As the engine makes them, further entries included."""
    shared = {"lr": 0.05, "lr_scale": 1.0, "lr_constant": False}
    return [
        {"params": parameters[:2], "weight_decay": 0.1, "adapt": True, **shared},
        {"params": parameters[2:], "weight_decay": 0.0, "adapt": False, **shared},
    ]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (step + 1)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    ("component", "fields", "plain"),
    [
        (SGD, {"momentum": 0.8, "nesterov": True}, torch.optim.SGD),
        (SGD, {"momentum": 0.0}, torch.optim.SGD),
        (Adam, {"betas": (0.8, 0.95), "eps": 1e-6}, torch.optim.Adam),
        (AdamW, {"betas": (0.9, 0.95)}, torch.optim.AdamW),
    ],
)
def test_equals_torchs_plain_loop(
    component: type[Optimizer], fields: dict[str, Any], plain: type[torch.optim.Optimizer]
) -> None:
    ours, theirs = weights(), weights()
    config = component.Config(lr=0.05, **fields)  # type: ignore[call-arg]
    created = component(config).create(groups(ours))
    reference = plain(groups(theirs), foreach=False, **fields)  # type: ignore[call-arg]
    for a, b in zip(train(created, ours), train(reference, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_groups_keep_their_own_weight_decay() -> None:
    created = SGD(SGD.Config(lr=0.05)).create(groups(weights()))
    assert [group["weight_decay"] for group in created.param_groups] == [0.1, 0.0]
    assert created.param_groups[1]["adapt"] is False


def test_lars_component_passes_every_field_on() -> None:
    ours, theirs = weights(), weights()
    fields: dict[str, Any] = {
        "momentum": 0.8, "nesterov": True, "trust_coefficient": 0.02, "lr_in_buffer": False,
    }  # fmt: skip
    created = LARS(LARS.Config(lr=0.05, **fields)).create(groups(ours))
    reference = lars.LARS(groups(theirs), lr=0.05, **fields)
    assert all(
        torch.equal(a, b)
        for a, b in zip(train(created, ours), train(reference, theirs), strict=True)
    )
    assert created.param_groups[0]["trust_coefficient"] == 0.02


@pytest.mark.parametrize(
    ("component", "fields", "message"),
    [
        (SGD, {"momentum": 0.0, "nesterov": True}, "nesterov needs momentum"),
        (SGD, {"momentum": 1.0}, "less than 1"),
        (Adam, {"betas": (0.9, 1.0)}, "less than 1"),
        (LARS, {"trust_coefficient": 0.0}, "greater than 0"),
        (AdamW, {"lr": 0.0}, "greater than 0"),
    ],
)
def test_mistakes_are_refused(
    component: type[Optimizer], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        component.Config(**{"lr": 0.1, **fields})


def test_a_first_step_that_float16_skips_leaves_no_momentum() -> None:
    """torch allocates the buffers of its fused step and writes them in the step that is skipped."""
    weight = torch.nn.Parameter(torch.ones(4096))
    made = SGD(SGD.Config(lr=0.1, momentum=0.9)).create(
        [{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (float("inf"), 1.0):
        weight.grad = torch.full_like(weight, 2.0 * gradient)
        scaler.scale(torch.zeros(()))
        scaler.step(made)
        scaler.update()
        if gradient == float("inf"):
            assert not made.state[weight]["momentum_buffer"].any()
            assert bool((weight == 1.0).all())
    torch.testing.assert_close(made.state[weight]["momentum_buffer"], torch.full((4096,), 2.0))
