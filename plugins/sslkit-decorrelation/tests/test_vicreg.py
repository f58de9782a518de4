"""VICReg against closed values, the formula in loops, lightly, and what public code gets wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from decorrelation_setup import (
    draw,
    make_loss,
    make_method,
    of_views,
    steps_written_out,
    take_steps,
)
from sslkit_decorrelation.vicreg import vicreg_terms
from torch import Tensor


def in_loops(views: Sequence[Tensor]) -> Tensor:
    """Bardes et al. 2022, with the half of the reference code in the variance."""
    a, b = views
    count, width = a.shape
    distance = sum((a[n, d] - b[n, d]) ** 2 for n in range(count) for d in range(width))
    loss = 25 * distance / (count * width)
    for z in views:
        means = [sum(z[n, d] for n in range(count)) / count for d in range(width)]
        for i in range(width):
            for j in range(width):
                products = ((z[n, i] - means[i]) * (z[n, j] - means[j]) for n in range(count))
                covariance = sum(products) / (count - 1)
                if i != j:
                    loss = loss + covariance**2 / width
                else:
                    loss = loss + 25 * torch.relu(1 - (covariance + 1e-4) ** 0.5) / (2 * width)
    return loss


def test_a_collapse_costs_24_75() -> None:
    """25 (1 - sqrt(1e-4)), whatever the embedding."""
    z = torch.full((16, 8), 3.0, dtype=torch.float64, requires_grad=True)
    loss = of_views(make_loss("vicreg"), z, z)
    assert loss.item() == pytest.approx(24.75, abs=1e-12)
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("term", "deviation", "shift", "expected"),
    [
        (0, 1.0, 2.0, 4.0),  # invariance: views 2 apart
        (1, 0.5, 0.0, 1 - (0.25 + 1e-4) ** 0.5),  # variance: dimensions of deviation 0.5
        (1, 3.0, 0.0, 0.0),
        (2, 1.0, 0.0, 2 * 3),  # covariance: 4 equal dimensions, 12 entries of 1, by 4, both views
    ],
)
def test_terms(term: int, deviation: float, shift: float, expected: float) -> None:
    column = draw(50, 1)
    column = (column - column.mean()) / column.std() * deviation
    z = column.expand(50, 4)
    assert vicreg_terms(z, z + shift)[term].item() == pytest.approx(expected, abs=1e-12)


def test_value_and_gradient_in_loops() -> None:
    views = (0.7 * draw(2, 6, 4)).requires_grad_()
    ours, theirs = of_views(make_loss("vicreg"), *views), in_loops(views.unbind())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_steps_in_loops() -> None:
    method = make_method("vicreg")
    losses, state = steps_written_out(method, 3, in_loops)
    assert take_steps(method, 3) == pytest.approx(losses, rel=1e-10)
    for name, value in state.items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss").VICRegLoss()
    views = (0.7 * draw(2, 32, 10)).requires_grad_()
    ours, theirs = of_views(make_loss("vicreg"), *views), lightly(*views)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_variance_is_the_mean_of_both_views() -> None:
    """A sum of both, as in solo-learn, is the weight 50 here."""
    views = (0.5 * draw(2, 20, 6)).unbind()
    hinges = [torch.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() for z in views]
    torch.testing.assert_close(vicreg_terms(*views)[1], sum(hinges) / 2)
    doubled = of_views(make_loss("vicreg", variance_weight=50), *views)
    expected = of_views(make_loss("vicreg"), *views) + 25 * sum(hinges) / 2
    torch.testing.assert_close(doubled, expected)
