"""SupCon against closed forms, a slow reference, NT-Xent, and hostile input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslkit.nn.functional import nt_xent, sup_con


def views(count: int, batch: int, dim: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, dim, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(count)
    ]


def reference(embeddings: list[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """The definition, term by term; an image without a label is the only one of its kind."""
    z = [row / row.norm() for view in embeddings for row in view]
    names = [(image if label < 0 else None, label) for image, label in enumerate(labels.tolist())]
    names = names * len(embeddings)
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        log_sum = torch.stack([z[i] @ z[a] / temperature for a in others]).logsumexp(dim=0)
        terms = [log_sum - z[i] @ z[p] / temperature for p in others if names[p] == names[i]]
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.5, 1.572878099555218), (0.1, 6.666757462404133)]
)
def test_aligned_orthogonal_pair_of_one_class(temperature: float, expected: float) -> None:
    z = torch.eye(2, dtype=torch.float64)
    loss = sup_con([z, z], torch.tensor([3, 3]), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_distinct_labels_give_nt_xent_to_the_last_bit(
    temperature: float, dtype: torch.dtype
) -> None:
    a, b = (view.detach().to(dtype) for view in views(2, 7))
    labels = torch.tensor([4, -1, 9, 2**40, 0, 3, 5])
    assert torch.equal(sup_con([a, b], labels, temperature), nt_xent(a, b, temperature))


@pytest.mark.parametrize("chunk", [1, 9, 10**6])
@pytest.mark.parametrize("count", [2, 3])
def test_value_and_gradient_equal_the_slow_reference(count: int, chunk: int) -> None:
    z, labels = views(count, 6), torch.tensor([7, -1, 7, 2**40, 7, -1])
    ours, slow = sup_con(z, labels, 0.3, chunk_elements=chunk), reference(z, labels, 0.3)
    torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, z) for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    labels = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(
        lambda a, b: sup_con([a, b], labels, 0.2, chunk_elements=8), tuple(views(2, 3, 3))
    )


def test_cold_temperature_in_half_precision() -> None:
    halves = [view.detach().half().requires_grad_() for view in views(2, 16, 8)]
    labels = torch.arange(16) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sup_con(halves, labels, 0.01)
    assert loss.dtype == torch.float32
    exact = reference([view.detach().double() for view in halves], labels, 0.01)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(view.grad is not None and view.grad.isfinite().all() for view in halves)


def test_zero_vectors_give_finite_values_and_no_gradient() -> None:
    a, b = (view.detach() for view in views(2, 4))
    a[1] = 0.0
    a.requires_grad_()
    loss = sup_con([a, b], torch.tensor([0, 0, 1, 1]), 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert torch.equal(a.grad[1], torch.zeros(4, dtype=torch.float64))


def test_order_and_names_of_classes_do_not_matter() -> None:
    z, labels = [view.detach() for view in views(2, 8)], torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])
    expected = sup_con(z, labels, 0.2)
    order = torch.tensor([5, 3, 0, 7, 1, 6, 2, 4])
    shuffled = sup_con([view[order] for view in z], 10 - 3 * labels[order], 0.2)
    torch.testing.assert_close(shuffled, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [
        (1, torch.zeros(3, dtype=torch.int64), "at least 2 views, not 1"),
        (2, torch.zeros(4, dtype=torch.int64), r"labels must be \(3,\) integers, not \(4,\)"),
        (2, torch.zeros(3), "integers, not .* of torch.float32"),
    ],
)
def test_bad_input_is_named(count: int, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sup_con(views(count, 3), labels, 0.1)
