"""KoLeo against its closed forms, lightly's code and loops."""

from __future__ import annotations

import math

import pytest
import torch
from sslkit_distill.feature_losses import koleo

from sslkit.api import Loss, LossInput, resolve_component
from sslkit.host.plugins import load_plugins


def make_koleo() -> Loss:
    found: Loss = resolve_component(load_plugins().registry, "loss", {"name": "koleo"}).build()
    return found


def test_orthogonal_rows() -> None:
    rows = 3.0 * torch.eye(6, 8, dtype=torch.float64)
    assert koleo(rows).item() == pytest.approx(-math.log(math.sqrt(2.0)), abs=1e-7)
    assert koleo(rows.float()).item() == pytest.approx(-0.34657, abs=1e-5)


def test_identical_rows() -> None:
    """15.587 at D = 256, with a finite gradient, in float32 too."""
    for kind in (torch.float64, torch.float32):
        rows = torch.ones(5, 256, dtype=kind, requires_grad=True)
        loss = koleo(rows)
        loss.backward()
        assert loss.item() == pytest.approx(-math.log(1e-8 * (1.0 + 16.0)), abs=1e-4)
        assert loss.item() == pytest.approx(15.587, abs=5e-3)
        assert rows.grad is not None
        assert rows.grad.isfinite().all()


def test_value_and_gradient_are_lightlys_and_those_of_loops() -> None:
    theirs = pytest.importorskip("lightly.loss").KoLeoLoss()
    torch.manual_seed(0)
    mine = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    other = mine.detach().clone().requires_grad_()
    by_hand = mine.detach().clone().requires_grad_()
    koleo(mine).backward()
    theirs(other).backward()
    torch.testing.assert_close(koleo(mine), theirs(other), rtol=1e-7, atol=0.0)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-9)
    units = [row / row.norm() for row in by_hand]
    terms = [
        min((one - two).norm() for j, two in enumerate(units) if j != i)
        for i, one in enumerate(units)
    ]
    loss = -torch.stack([term.log() for term in terms]).mean()
    loss.backward()
    torch.testing.assert_close(koleo(mine), loss, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(mine.grad, by_hand.grad, rtol=1e-5, atol=1e-7)


def test_views_are_apart_and_shapes_are_named() -> None:
    torch.manual_seed(1)
    one, two = torch.randn(5, 4), torch.randn(5, 4)
    found = make_koleo()(LossInput((one, two)))
    torch.testing.assert_close(found, (koleo(one) + koleo(two)) / 2.0)
    with pytest.raises(ValueError, match=r"B >= 2, not \(1, 4\)"):
        koleo(one[:1])
