"""NT-Xent against closed forms, a slow reference, another library, and hostile input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.nn.functional import nt_xent

VIEW_1 = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 2]], dtype=torch.float64)
VIEW_2 = torch.tensor([[2.0, 2, 0], [0, 1, 1], [1, 1, 3]], dtype=torch.float64)


def pair(batch: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype) for _ in range(2)]


def reference(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """The definition, term by term."""
    z = [row / row.norm() for row in [*z_a, *z_b]]
    count, batch = len(z), len(z_a)
    losses = []
    for i in range(count):
        partner = (i + batch) % count
        denominator = sum((z[i] @ z[k] / temperature).exp() for k in range(count) if k != i)
        losses.append(-(z[i] @ z[partner]) / temperature + torch.as_tensor(denominator).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("batch", [2, 5])
def test_equal_embeddings_give_the_chance_level(batch: int, temperature: float) -> None:
    z = torch.full((batch, 4), 0.7, dtype=torch.float64, requires_grad=True)
    loss = nt_xent(z, z, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2 * batch - 1), abs=1e-12)
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.5, 0.2395447662218846), (0.1, 9.079573746717529e-05), (1.0, 0.5514447139320511)],
)
def test_aligned_orthogonal_pair(temperature: float, expected: float) -> None:
    z = torch.eye(2, dtype=torch.float64)
    assert nt_xent(z, z, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.5, 0.9988473850429839), (0.1, 0.1721369624094343)]
)
def test_published_rows(temperature: float, expected: float) -> None:
    assert nt_xent(VIEW_1, VIEW_2, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (3, 1), (7, 5)])
def test_value_and_gradient_equal_the_slow_reference(batch: int, dim: int) -> None:
    z_a, z_b = (z.requires_grad_() for z in pair(batch, dim))
    fast, slow = nt_xent(z_a, z_b, 0.3), reference(z_a, z_b, 0.3)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, [z_a, z_b]) for loss in (fast, slow))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradient_has_the_derived_form() -> None:
    """d L / d z_i = (sum_j (P_ij + P_ji) z_j - 2 z_p(i)) / (M tau), then through the norm."""
    z_a, z_b = (z.requires_grad_() for z in pair(4, 6))
    nt_xent(z_a, z_b, 0.2).backward()
    z = torch.cat([z_a, z_b]).detach()
    norms = z.norm(dim=1, keepdim=True)
    unit = z / norms
    probabilities = (unit @ unit.T / 0.2).fill_diagonal_(-math.inf).softmax(dim=1)
    to_unit = (probabilities + probabilities.T) @ unit - 2 * unit.roll(4, dims=0)
    to_unit /= len(z) * 0.2
    expected = (to_unit - (to_unit * unit).sum(dim=1, keepdim=True) * unit) / norms
    assert z_a.grad is not None
    assert z_b.grad is not None
    torch.testing.assert_close(torch.cat([z_a.grad, z_b.grad]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("batch", "temperature"), [(2, 0.5), (5, 0.1), (4, 0.02)])
def test_gradcheck(batch: int, temperature: float) -> None:
    inputs = tuple(z.requires_grad_() for z in pair(batch, 3, seed=1))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature), inputs)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("shape", [(2, 3), (33, 16)])
def test_agrees_with_lightly(shape: tuple[int, int], temperature: float) -> None:
    loss = pytest.importorskip("lightly.loss", reason="the parity group is not installed")
    ours = [z.requires_grad_() for z in pair(*shape, dtype=torch.float32)]
    theirs = [z.detach().clone().requires_grad_() for z in ours]
    value, expected = nt_xent(*ours, temperature), loss.NTXentLoss(temperature)(*theirs)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    value.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_cold_temperature_stays_exact() -> None:
    """Logits span 200 units at temperature 0.01: exp overflows and 1e-9 masks leak there."""
    z_a, z_b = pair(16, 8, dtype=torch.float32)
    z_a.requires_grad_()
    loss = nt_xent(z_a, z_b, 0.01)
    loss.backward()
    torch.testing.assert_close(loss.double(), reference(z_a.double(), z_b.double(), 0.01))
    assert z_a.grad is not None
    assert z_a.grad.isfinite().all()


def test_confident_pairs_do_not_cancel() -> None:
    z = torch.eye(2)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log1p(2 * math.exp(-10)), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    halves = [(300 * z).to(dtype) for z in pair(8, 64, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=dtype):
        loss = nt_xent(*halves, 0.07)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(*(z.float() for z in halves), 0.07), rtol=0, atol=0)


def test_autocast_does_not_reach_the_similarities() -> None:
    z_a, z_b = (z.requires_grad_() for z in pair(8, 64, dtype=torch.float32))
    plain = nt_xent(z_a, z_b, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(z_a, z_b, 0.05)
    assert torch.equal(plain, inside)
    gradients = [torch.autograd.grad(loss, [z_a, z_b]) for loss in (plain, inside)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_zero_vectors_give_finite_values_and_no_gradient() -> None:
    z_a, z_b = pair(3, 4, dtype=torch.float32)
    z_a[1] = 0.0
    z_a.requires_grad_()
    loss = nt_xent(z_a, z_b, 0.1)
    loss.backward()
    assert loss.isfinite()
    assert z_a.grad is not None
    assert torch.equal(z_a.grad[1], torch.zeros(4))
    assert z_a.grad[0].abs().max() > 0


def test_invariances() -> None:
    z_a, z_b = pair(6, 4)
    expected = nt_xent(z_a, z_b, 0.2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    rotation = torch.linalg.qr(pair(4, 4, seed=2)[0]).Q
    scales = torch.rand(6, 1, dtype=torch.float64) + 0.1
    for a, b in [
        (z_a[order], z_b[order]),
        (z_b, z_a),
        (z_a * scales, z_b),
        (z_a @ rotation, z_b @ rotation),
    ]:
        torch.testing.assert_close(nt_xent(a, b, 0.2), expected, rtol=1e-12, atol=1e-12)


def test_a_misaligned_pair_costs_more() -> None:
    z = torch.eye(4, dtype=torch.float64)
    assert nt_xent(z, z.roll(1, dims=0), 0.5) > nt_xent(z, z, 0.5) + 1.0


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((1, 4), (1, 4)), 0.5, "at least 2 images, not 1"),
        (((3, 4), (2, 4)), 0.5, r"\(3, 4\) and \(2, 4\)"),
        (((3, 4, 2), (3, 4, 2)), 0.5, r"must both be \(B, D\)"),
        (((3, 4), (3, 4)), 0.0, "temperature must be above 0, not 0.0"),
        (((3, 4), (3, 4)), math.nan, "temperature must be above 0"),
    ],
)
def test_bad_input_is_named(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        nt_xent(torch.randn(shapes[0]), torch.randn(shapes[1]), temperature)
    assert "\n" not in str(caught.value)
