"""Barlow Twins against closed values, the paper's formula in loops, and lightly."""

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
from sslkit_decorrelation.barlow_twins import barlow_twins_terms
from torch import Tensor

from sslkit.api import LossInput

WEIGHT, EPS = 0.0051, 1e-5


def in_loops(views: Sequence[Tensor]) -> Tensor:
    """Zbontar et al. 2021: entry by entry of the cross-correlation."""
    count, width = views[0].shape
    normed = []
    for z in views:
        columns = []
        for d in range(width):
            mean = sum(z[n, d] for n in range(count)) / count
            variance = sum((z[n, d] - mean) ** 2 for n in range(count)) / count
            columns.append([(z[n, d] - mean) / (variance + EPS) ** 0.5 for n in range(count)])
        normed.append(columns)
    a, b = normed
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(width):
        for j in range(width):
            c = sum(a[i][n] * b[j][n] for n in range(count)) / count
            loss = loss + ((c - 1) ** 2 if i == j else WEIGHT * c**2)
    return loss


def whitened(z: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1, without correlation."""
    q, _ = torch.linalg.qr(z - z.mean(dim=0))
    return q * len(z) ** 0.5


def test_identical_whitened_views_lose_nothing() -> None:
    z = whitened(draw(64, 8))
    assert of_views(make_loss("barlow_twins"), z, 5.0 * z + 3.0).item() == pytest.approx(
        0, abs=1e-8
    )
    turned = torch.cat([z[:, 1:], z[:, :1]], dim=1)  # each dimension agrees with another one
    lost = of_views(make_loss("barlow_twins"), z, turned).item()
    assert lost == pytest.approx(8 + WEIGHT * 8, rel=1e-4)


@pytest.mark.parametrize(
    ("width", "batch"),
    [
        (256, 512),
        pytest.param(8192, 2048, marks=pytest.mark.slow),  # 8363; a product of 8192² x 2048
    ],
)
def test_independent_views(width: int, batch: int) -> None:
    """D (1 + 1/B) on the diagonal and D (D - 1) / B off it."""
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, batch, width, generator=generator).unbind()
    on, off = barlow_twins_terms(*views)
    assert on.item() == pytest.approx(width * (1 + 1 / batch), abs=5 * (4 * width / batch) ** 0.5)
    assert off.item() == pytest.approx(width * (width - 1) / batch, rel=0.02)
    if width == 8192:
        assert (on + WEIGHT * off).item() == pytest.approx(8363, abs=25)


def test_value_and_gradient_in_loops() -> None:
    views = draw(2, 6, 4).requires_grad_()
    ours, theirs = of_views(make_loss("barlow_twins"), *views), in_loops(views.unbind())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_steps_in_loops() -> None:
    method = make_method("barlow_twins", loss_weight=0.1)
    losses, state = steps_written_out(method, 3, lambda views: 0.1 * in_loops(views), 0.024)
    assert take_steps(method, 3) == pytest.approx(losses, rel=1e-10)
    for name, value in state.items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.0051)
    views = draw(2, 32, 10).requires_grad_()
    ours, theirs = of_views(make_loss("barlow_twins"), *views), lightly(*views)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_metrics_are_the_terms_and_three_views_are_three_pairs() -> None:
    views = draw(3, 20, 5).unbind()
    loss = make_loss("barlow_twins")
    pairs = [of_views(loss, views[a], views[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(of_views(loss, *views), torch.stack(pairs).mean())
    metrics = loss.metrics(LossInput(views))
    total = metrics["on_diagonal"] + WEIGHT * metrics["off_diagonal"]
    torch.testing.assert_close(of_views(loss, *views), total)
