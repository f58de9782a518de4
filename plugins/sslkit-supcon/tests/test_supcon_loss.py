"""SupCon's loss against closed values, the definition in loops, and NT-Xent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from sslkit_supcon.supcon_loss import SupConLoss
from torch import Tensor

from sslkit.api import LossInput, resolve_component
from sslkit.host.plugins import load_plugins
from sslkit.nn.functional import nt_xent


def make_loss(**fields: object) -> SupConLoss:
    registry = load_plugins().registry
    found = resolve_component(registry, "loss", {"name": "supcon", **fields}).build()
    assert isinstance(found, SupConLoss)
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_loops(views: Sequence[Tensor], labels: Tensor, temperature: float, base: float) -> Tensor:
    """Khosla et al. 2020, equation 2, times temperature / base; an unlabelled image is alone."""
    z = [row / row.norm() for view in views for row in view]
    kind = [(i if label < 0 else None, label) for i, label in enumerate(labels.tolist())]
    kinds = kind * len(views)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        denominator = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        positives = [p for p in others if kinds[p] == kinds[i]]
        logs = [torch.log(torch.exp(z[i] @ z[p] / temperature) / denominator) for p in positives]
        total = total - sum(logs) / len(positives)
    return temperature / base * total / len(z)


@pytest.mark.parametrize(
    ("temperature", "base", "expected"),
    [
        (0.5, None, 1.572878099555218),
        (0.1, None, 6.666757462404133),
        (0.5, 0.07, 11.234843568251557),
        (0.1, 0.07, 9.523939232005905),
    ],
)
def test_aligned_orthogonal_pair_of_one_class(
    temperature: float, base: float | None, expected: float
) -> None:
    z = torch.eye(2, dtype=torch.float64)
    loss = make_loss(temperature=temperature, base_temperature=base)
    found = loss(LossInput((z, z), torch.tensor([3, 3])))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("labels", [torch.arange(9), torch.full((9,), -1)], ids=["distinct", "-1"])
def test_without_classmates_it_is_nt_xent(temperature: float, labels: Tensor) -> None:
    views = draw(2, 9, 5).unbind()
    found = make_loss(temperature=temperature)(LossInput(views, labels))
    torch.testing.assert_close(found, temperature / 0.07 * nt_xent(*views, temperature))
    plain = make_loss(temperature=temperature, base_temperature=None)(LossInput(views, labels))
    torch.testing.assert_close(plain, nt_xent(*views, temperature))


@pytest.mark.parametrize("count", [2, 3])
def test_value_and_gradient_in_loops(count: int) -> None:
    views, labels = draw(count, 6, 4).requires_grad_(), torch.tensor([7, -1, 7, 2, 7, -1])
    ours = make_loss(temperature=0.3)(LossInput(views.unbind(), labels))
    slow = in_loops(views.unbind(), labels, 0.3, 0.07)
    torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_collapse_costs_the_logarithm_of_the_candidates() -> None:
    z = torch.ones(8, 4, dtype=torch.float64, requires_grad=True)
    loss = make_loss(base_temperature=None)(LossInput((z, z), torch.arange(8) % 3))
    assert loss.item() == pytest.approx(math.log(15))
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-12


def test_metrics_count_positives() -> None:
    labels = torch.tensor([5, 5, 5, 2, -1, -1])
    views = draw(2, 6, 4).unbind()
    found = make_loss().metrics(LossInput(views, labels))
    expected = (3 * (1 + 2 * 2) + 3 * 1) / 6  # of three classmates, of three images that are alone
    assert found["positives"].item() == pytest.approx(expected)


def test_a_method_without_labels_is_named() -> None:
    with pytest.raises(ValueError, match="needs labels, and the method gave none"):
        make_loss()(LossInput(draw(2, 4, 3).unbind()))
