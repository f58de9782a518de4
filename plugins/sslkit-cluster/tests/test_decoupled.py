"""The loss `dcl` against closed forms, a slow reference and public code."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from sslkit_cluster.decoupled import dcl
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import Loss, LossInput, Progress, resolve_component, rewards_collapse
from sslkit.host.plugins import load_plugins
from sslkit.nn.functional import nt_xent

BASIS = torch.eye(2, dtype=torch.float64)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0])
WEIGHTS = pytest.mark.parametrize("sigma", [None, 0.5, 0.1])


def make(**fields: Any) -> Loss:
    block = {"name": "dcl", **fields}
    loss: Loss = resolve_component(load_plugins().registry, "loss", block).build()
    return loss


def pair(batch: int = 7, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Views that agree somewhat, of any length."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return (2.0 * z + noise[0]).requires_grad_(), (0.5 * (z + noise[1])).requires_grad_()


def slow_dcl(z_a: Tensor, z_b: Tensor, temperature: float, sigma: float | None) -> Tensor:
    """Equation 6, anchor by anchor and candidate by candidate."""
    views = [[row / row.norm() for row in z] for z in (z_a, z_b)]
    batch, total = len(z_a), torch.zeros((), dtype=torch.float64)
    weights = [1.0] * batch
    if sigma is not None:
        exponents = [math.exp(float(a @ b) / sigma) for a, b in zip(*views, strict=True)]
        weights = [2.0 - batch * each / sum(exponents) for each in exponents]
    for view in (0, 1):
        for i in range(batch):
            anchor = views[view][i]
            negatives = [
                (anchor @ views[other][k] / temperature).exp()
                for other in (0, 1)
                for k in range(batch)
                if k != i
            ]
            positive = anchor @ views[1 - view][i] / temperature
            total = total - weights[i] * positive + torch.stack(negatives).sum().log()
    return total / (2 * batch)


# --- Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.5, -1.3068528194400546), (0.1, -9.306852819440055), (1.0, -0.3068528194400547)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_aligned_orthogonal_pair(temperature: float, expected: float, weighted: bool) -> None:
    """-1 / temperature + ln 2; with equal cosines every weight of DCLW is 1."""
    loss = make(temperature=temperature, weighted=weighted)(LossInput((3.0 * BASIS, BASIS)))
    assert loss.item() == pytest.approx(expected, rel=1e-15)


@TEMPERATURES
def test_aligned_orthogonal_images(temperature: float) -> None:
    basis = torch.eye(6, dtype=torch.float64)
    found = dcl(basis, 2.0 * basis, temperature)
    assert found.item() == pytest.approx(-1.0 / temperature + math.log(10), rel=1e-14)


@TEMPERATURES
def test_all_embeddings_equal(temperature: float) -> None:
    """ln(2 B - 2) at every temperature, and no gradient."""
    rows = torch.ones(6, 3, dtype=torch.float64, requires_grad=True)
    loss = dcl(rows, rows, temperature)
    assert loss.item() == pytest.approx(math.log(10), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, rows)
    assert gradient.abs().max() < 1e-12


def test_weights_of_two_images() -> None:
    """Cosines 1 and 0: the weights are 2 - 2 e^(1/s) / (1 + e^(1/s)) and 2 - 2 / (1 + e^(1/s))."""
    first = torch.eye(4, dtype=torch.float64)[[0, 1]]
    second = torch.eye(4, dtype=torch.float64)[[0, 2]]
    share = math.exp(2.0) / (1.0 + math.exp(2.0))
    found = dcl(first, second, 0.5, sigma=0.5)
    assert found.item() == pytest.approx(math.log(2) - (2.0 - 2.0 * share) / 2 / 0.5, rel=1e-14)


# --- Independent references -----------------------------------------------------------------------


@TEMPERATURES
@WEIGHTS
def test_equals_the_slow_reference(temperature: float, sigma: float | None) -> None:
    views = pair()
    found, expected = dcl(*views, temperature, sigma=sigma), slow_dcl(*views, temperature, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    for a, b in zip(
        torch.autograd.grad(found, views), torch.autograd.grad(expected, views), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@TEMPERATURES
def test_gradient_is_that_of_finite_differences(temperature: float) -> None:
    assert torch.autograd.gradcheck(lambda a, b: dcl(a, b, temperature), pair(4, 3))


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_lightly(weighted: bool) -> None:
    """Value and gradient, without a constant between them."""
    lightly = pytest.importorskip("lightly.loss")
    theirs = (lightly.DCLWLoss if weighted else lightly.DCLLoss)(temperature=0.2)
    views = pair(16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its weights are a copy of a tensor, of which torch warns
        expected = theirs(*views)
    found = make(temperature=0.2, weighted=weighted)(LossInput(views))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    for a, b in zip(
        torch.autograd.grad(found, views), torch.autograd.grad(expected, views), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def reference_code(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """raminnakhli/Decoupled-Contrastive-Learning: a sum of both directions, whose own image is
    masked by adding log(1e-45)."""

    def one_way(z1: Tensor, z2: Tensor) -> Tensor:
        similarity = torch.cat([z1 @ z1.T, z1 @ z2.T], dim=1) / temperature
        masked = similarity + torch.eye(len(z1)).repeat(1, 2) * math.log(1e-45)
        return (masked.logsumexp(1) - (z1 * z2).sum(1) / temperature).mean()

    return one_way(z1, z2) + one_way(z2, z1)


def test_is_half_of_the_reference_code() -> None:
    first, second = (F.normalize(view.detach(), dim=1) for view in pair(9, 4))
    expected = reference_code(first, second, 0.1) / 2
    torch.testing.assert_close(dcl(first, second, 0.1), expected)


def test_the_own_image_is_left_out_at_any_temperature() -> None:
    """Where a mask of log(1e-45) is too small: opposite images at temperature 0.01 give
    -100 + ln(2 e^-100) = -199.3."""
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert dcl(opposite, opposite, 0.01).item() == pytest.approx(-200 + math.log(2), rel=1e-12)
    assert reference_code(opposite, opposite, 0.01).item() / 2 > -110


# --- As a component -------------------------------------------------------------------------------


@TEMPERATURES
def test_is_below_nt_xent_by_what_the_positive_adds(temperature: float) -> None:
    """NT-Xent is the softplus of an anchor's DCL term, so it is above it."""
    views = pair()
    assert dcl(*views, temperature) < nt_xent(*views, temperature)


def test_more_views_are_averaged_over_pairs() -> None:
    a, b = pair()
    c = pair(seed=1)[0]
    expected = torch.stack([dcl(a, b, 0.1), dcl(a, c, 0.1), dcl(b, c, 0.1)]).mean()
    torch.testing.assert_close(make()(LossInput((a, b, c))), expected)
    with pytest.raises(ValueError, match="at least 2 views, not 1"):
        make()(LossInput((a,)))


@WEIGHTS
def test_chunks_change_rounding_alone(sigma: float | None) -> None:
    views = pair(20, 6)
    whole, parts = (dcl(*views, 0.1, sigma=sigma, chunk_elements=size) for size in (2**22, 64))
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=0.0)
    for a, b in zip(
        torch.autograd.grad(parts, views), torch.autograd.grad(whole, views), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def test_is_computed_in_float32() -> None:
    a, b = (view.detach().float() for view in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dcl(a.bfloat16(), b.bfloat16(), 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dcl(a.bfloat16().float(), b.bfloat16().float(), 0.1))


def test_weights_send_no_gradient() -> None:
    """What they add to the gradient is that of fixed weights."""
    views = pair()
    cosine = F.cosine_similarity(*views)
    weights = 2.0 - len(cosine) * (cosine.detach() / 0.5).softmax(0)
    difference = dcl(*views, 0.2, sigma=0.5) - dcl(*views, 0.2)
    expected = ((1.0 - weights) * cosine / 0.2).mean()
    for a, b in zip(
        torch.autograd.grad(difference, views), torch.autograd.grad(expected, views), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_its_temperature_may_follow_a_schedule() -> None:
    views = pair()
    loss = make(temperature={"name": "linear", "start": 0.5, "end": 0.1})
    for step, temperature in ((0, 0.5), (5, 0.3), (10, 0.1)):
        found = loss(LossInput(views, progress=Progress(step, 10, 5)))
        torch.testing.assert_close(found, dcl(*views, temperature))


def test_metrics_are_those_of_both_views() -> None:
    rows = torch.eye(8, dtype=torch.float64)
    found = make(temperature=0.1).metrics(LossInput((rows, rows)))
    assert set(found) == {"contrastive_top1", "contrastive_top5", "contrastive_entropy"}
    assert found["contrastive_top1"] == 1.0
    equal = make().metrics(LossInput((rows[:1].expand(8, 8), rows[:1].expand(8, 8))))
    assert equal["contrastive_top1"].item() == pytest.approx(1 / 15)


def test_it_does_not_reward_collapse() -> None:
    assert not rewards_collapse(make())
    assert not rewards_collapse(make(weighted=True))


def test_what_is_refused() -> None:
    a, b = pair()
    for arguments, said in (
        ((a, b[:3], 0.1), "must both be"),
        ((a[:1], b[:1], 0.1), "at least 2 images"),
        ((a, b, 0.0), "temperature must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            dcl(*arguments)
    with pytest.raises(ValueError, match="sigma must be above 0, not 0"):
        dcl(a, b, 0.1, sigma=0.0)
