"""VISReg against closed values, the formula in loops, and lightly."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from decorrelation_setup import FIRST, draw, make_loss, of_views
from sslkit_decorrelation.directions import unit_directions
from sslkit_decorrelation.visreg import visreg_terms
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import LossInput
from sslkit.randomness import SampleRandom

ALONG = F.normalize(draw(4, 12, seed=9), dim=0)


def in_loops(z: Tensor, along: Tensor) -> Tensor:
    """Wu et al. 2026, number by number, with the deviation as a constant in the shape."""
    count, width = z.shape
    normal = statistics.NormalDist()
    center = scale = shape = torch.zeros((), dtype=torch.float64)
    columns = []
    for d in range(width):
        mean = sum(z[n, d] for n in range(count)) / count
        deviation = (sum((z[n, d] - mean) ** 2 for n in range(count)) / count) ** 0.5
        center, scale = center + mean**2 / width, scale + (deviation - 1) ** 2 / width
        columns.append([(z[n, d] - mean) / (deviation.detach() + 1e-4) for n in range(count)])
    for s in range(along.shape[1]):
        x = [sum(columns[d][n] * along[d, s] for d in range(width)) for n in range(count)]
        for i, value in enumerate(sorted(x, key=lambda value: value.item()), start=1):
            quantile = normal.inv_cdf(i / (count + 1))
            shape = shape + (value - quantile) ** 2 / (count * along.shape[1])
    return center + scale + shape


@pytest.mark.parametrize(("batch", "shape"), [(8, 0.56995), (64, 0.89181), (512, 0.97907)])
def test_a_collapse(batch: int, shape: float) -> None:
    z = torch.full((batch, 4), 2.0, dtype=torch.float64, requires_grad=True)
    terms = visreg_terms(z, ALONG)
    assert terms.tolist() == pytest.approx([4.0, 1.0, shape], abs=5e-6)
    assert torch.autograd.grad(terms.sum(), z)[0].isfinite().all()


def test_the_scale_keeps_its_gradient_near_a_collapse() -> None:
    """Where SIGReg loses it: ten times nearer, ten times less."""
    gradients: dict[str, list[float]] = {"sigreg": [], "visreg": []}
    for size in (1e-3, 1e-4):
        z = (size * draw(32, 4)).requires_grad_()
        (scale,) = torch.autograd.grad(visreg_terms(z, ALONG)[1], z)
        (sketch,) = torch.autograd.grad(of_views(make_loss("sigreg", directions=64), z), z)
        gradients["visreg"].append(float(scale.norm()))
        gradients["sigreg"].append(float(sketch.norm()))
    assert gradients["visreg"][1] == pytest.approx(gradients["visreg"][0], rel=0.01)
    assert gradients["sigreg"][1] < 0.2 * gradients["sigreg"][0]


def test_normal_quantiles_are_the_least_of_one_dimension() -> None:
    count = 50
    quantiles = torch.special.ndtri(torch.arange(1, count + 1).double() / (count + 1))[:, None]
    exact = quantiles / quantiles.square().mean().sqrt()  # of deviation 1, as the shape sees it
    along = torch.ones(1, 1, dtype=torch.float64)
    least = (exact - quantiles).square().mean()
    center, scale, shape = visreg_terms(exact, along, eps=0.0).tolist()
    assert (center, scale) == pytest.approx((0.0, 0.0), abs=1e-10)
    assert shape == pytest.approx(least.item(), abs=1e-10)


def test_the_shape_does_not_know_shift_and_scale() -> None:
    z = draw(20, 4)
    moved = visreg_terms(z * 3.0 + 5.0, ALONG, eps=1e-12)
    torch.testing.assert_close(moved[2], visreg_terms(z, ALONG, eps=1e-12)[2])


def test_value_and_gradient_in_loops() -> None:
    views = draw(2, 6, 4).requires_grad_()
    random = SampleRandom(0, "method", 0, torch.arange(6))
    along = unit_directions(LossInput(views.unbind(), random=random, progress=FIRST), "visreg", 12)
    ours = of_views(make_loss("visreg", directions=12), *views)
    slow = sum(in_loops(z, along) for z in views) / 2
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(found, views)[0] for found in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_terms_equal_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same directions."""
    visreg = pytest.importorskip("lightly.loss.visreg_loss")
    z, raw = draw(30, 4), draw(4, 12, seed=9)

    def randn(*_: Any, **__: Any) -> Tensor:
        return raw

    center, scale, shape = visreg_terms(z, ALONG)
    torch.testing.assert_close(center, visreg.visreg_center_loss(z))
    torch.testing.assert_close(scale, visreg.visreg_scale_loss(z))
    monkeypatch.setattr(torch, "randn", randn)
    theirs = visreg.visreg_shape_loss(z, num_slices=12)
    torch.testing.assert_close(shape, theirs, rtol=1e-5, atol=1e-6)  # its quantiles in float32


def test_weights() -> None:
    z = draw(20, 4)
    loss = make_loss("visreg", directions=12)
    given = LossInput((z,), random=SampleRandom(0, "method", 0, torch.arange(20)), progress=FIRST)
    terms = loss.metrics(given)
    assert list(terms) == ["center", "scale", "shape"]
    weights = {"center_weight": 2.0, "scale_weight": 3.0, "shape_weight": 5.0}
    found = make_loss("visreg", directions=12, **weights)(given)
    torch.testing.assert_close(
        found, 2.0 * terms["center"] + 3.0 * terms["scale"] + 5.0 * terms["shape"]
    )
