"""LARS: the two-step vector of both forms, and its building blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sslkit.nn.lars import LARS, trust_ratios

GRADIENTS = ((-0.8, 0.6), (0.6, 0.8))


def two_steps(*, lrs: tuple[float, float] = (1.0, 0.5), **options: object) -> list[Tensor]:
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LARS([weight], lr=lrs[0], momentum=0.9, weight_decay=0.1, **options)  # type: ignore[arg-type]
    seen = []
    for gradient, lr in zip(GRADIENTS, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


@pytest.mark.parametrize(
    ("lr_in_buffer", "second"),
    [(True, (3.002748603, 3.989504282)), (False, (3.001742373, 3.991516744))],
)
def test_published_vector(lr_in_buffer: bool, second: tuple[float, float]) -> None:
    after = two_steps(lr_in_buffer=lr_in_buffer)
    assert after[0].tolist() == pytest.approx((3.002236068, 3.995527864), abs=1e-9)
    assert after[1].tolist() == pytest.approx(second, abs=1e-9)


def test_both_forms_agree_at_a_constant_rate() -> None:
    inside, outside = (
        two_steps(lrs=(1.0, 1.0), lr_in_buffer=inside)[1] for inside in (True, False)
    )
    torch.testing.assert_close(inside, outside, rtol=1e-12, atol=1e-12)
    assert inside.tolist() == pytest.approx((3.00124868, 3.98750562), abs=5e-9)


def test_trust_ratio_uses_the_decayed_gradient() -> None:
    weight = torch.tensor([3.0, 4.0])
    gradient = torch.tensor([-0.8, 0.6]) + 0.1 * weight
    (ratio,) = trust_ratios([weight], [gradient], 0.001)
    assert ratio.item() == pytest.approx(0.004472136, rel=1e-6)


@pytest.mark.parametrize(("weight", "gradient"), [((0.0, 0.0), (1.0, 2.0)), ((1.0, 2.0), (0, 0))])
def test_a_zero_norm_gives_ratio_one(
    weight: tuple[float, ...], gradient: tuple[float, ...]
) -> None:
    (ratio,) = trust_ratios([torch.tensor(weight)], [torch.tensor(gradient).float()], 0.001)
    assert ratio.item() == 1.0


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lr_in_buffer", [False, True])
def test_without_adaptation_it_is_torch_sgd(nesterov: bool, lr_in_buffer: bool) -> None:
    """At a constant rate; the exclusion is the group's flag and not its weight decay."""
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    lars = LARS(
        [{"params": [ours], "adapt": False}],
        lr=0.3, weight_decay=0.01, nesterov=nesterov, lr_in_buffer=lr_in_buffer,
    )  # fmt: skip
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    for _ in range(4):
        for parameter, optimizer in ((ours, lars), (theirs, sgd)):
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_adaptation_without_weight_decay() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([100.0, 0.0])
    LARS([weight], lr=1.0, weight_decay=0.0).step()
    assert (weight - torch.tensor([3.0, 4.0])).norm().item() == pytest.approx(0.005, rel=1e-3)


def test_steps_do_not_depend_on_how_tensors_are_grouped() -> None:
    def train(split: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        weights = [nn.Parameter(torch.randn(n, 4, generator=generator)) for n in (2, 3, 5)]
        groups = [{"params": [w]} for w in weights] if split else [{"params": weights}]
        optimizer = LARS(groups, lr=0.7, weight_decay=0.01)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        return [weight.detach() for weight in weights]

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


def test_state_survives_a_checkpoint_and_parameters_without_gradient_stay() -> None:
    def build() -> tuple[list[nn.Parameter], LARS]:
        weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))]
        return weights, LARS(weights, lr=1.0, weight_decay=0.1)

    weights, optimizer = build()
    weights[0].grad = torch.full((2, 2), 0.5)
    optimizer.step()
    assert torch.equal(weights[1], torch.ones(3))

    others, restored = build()
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        others[0].copy_(weights[0])
    for first, step in ((weights[0], optimizer), (others[0], restored)):
        first.grad = torch.full((2, 2), -0.25)
        step.step()
    assert torch.equal(weights[0], others[0])


def test_norms_of_half_precision_weights_are_taken_in_float32() -> None:
    weight = torch.full((300, 300), 300.0, dtype=torch.float16)  # the norm, 90000, overflows
    (ratio,) = trust_ratios([weight], [weight], 0.001)
    assert ratio.item() == pytest.approx(0.001, rel=1e-4)
