"""InfoNCE, the contrastive accuracies and the entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.nn.functional import (
    contrastive_accuracy_and_entropy,
    info_nce,
    softmax_entropy,
    topk_accuracy,
)

VIEW_1 = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 2]], dtype=torch.float64)
VIEW_2 = torch.tensor([[2.0, 2, 0], [0, 1, 1], [1, 1, 3]], dtype=torch.float64)


def rows(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.5, 0.1269280110429726), (0.1, 4.5398899216870535e-05), (1.0, 0.31326168751822286)],
)
def test_aligned_orthogonal_pair(temperature: float, expected: float) -> None:
    z = torch.eye(2, dtype=torch.float64)
    assert info_nce(z, z, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


def test_directions_on_published_rows() -> None:
    forth, back = 0.6093529908157825, 0.6199931164025244
    assert info_nce(VIEW_1, VIEW_2, None, 0.5).item() == pytest.approx(forth, rel=1e-12)
    assert info_nce(VIEW_2, VIEW_1, None, 0.5).item() == pytest.approx(back, rel=1e-12)
    both = info_nce(VIEW_1, VIEW_2, None, 0.5, symmetric=True)
    assert both.item() == pytest.approx(0.6146730536091535, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_orthogonal_queue(temperature: float) -> None:
    """ln(1 + K e^(-1/tau)) where the key is the query and the queue is orthogonal to it."""
    query = torch.eye(8, dtype=torch.float64)[:3]
    queue = torch.eye(8, dtype=torch.float64)[3:]
    expected = math.log1p(5 * math.exp(-1 / temperature))
    loss = info_nce(query, 4 * query, queue, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [65_536, 4096])
def test_queue_at_chance(size: int) -> None:
    ones = torch.ones(1, 2, dtype=torch.float64)
    loss = info_nce(ones, ones, ones.expand(size, 2), 0.07)
    assert loss.item() == pytest.approx(math.log(1 + size), rel=1e-12)


def test_queue_equals_the_cross_entropy_over_one_plus_k_logits() -> None:
    query, key, queue = rows(5, 4, 0), rows(5, 4, 1), rows(7, 4, 2)
    q, k, n = (x / x.norm(dim=1, keepdim=True) for x in (query, key, queue))
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ n.T], dim=1) / 0.1
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(info_nce(query, key, queue, 0.1), expected, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    query, key, queue = (rows(4, 3, seed).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(lambda q, k: info_nce(q, k, None, 0.1), (query, key))
    assert torch.autograd.gradcheck(
        lambda q, k: info_nce(q, k, None, 0.3, symmetric=True), (query, key)
    )
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, 0.1), (query, key, queue))


def test_cold_temperature_in_half_precision() -> None:
    query, key, queue = (rows(6, 16, seed).half().requires_grad_() for seed in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [info_nce(query, key, None, 0.01), info_nce(query, key, queue, 0.01)]
    exact = [x.detach().double() for x in (query, key, queue)]
    for loss, expected in zip(
        losses, [info_nce(*exact[:2], None, 0.01), info_nce(*exact, 0.01)], strict=True
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    sum(losses).backward()  # type: ignore[union-attr]
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("query", "key", "negatives", "symmetric", "message"),
    [
        ((1, 4), (1, 4), None, False, "at least 2 images"),
        ((2, 4), (2, 3), None, False, r"\(2, 4\) and \(2, 3\)"),
        ((2, 4), (2, 4), (5, 3), False, r"negatives must be \(K, 4\)"),
        ((2, 4), (2, 4), (0, 4), False, "K >= 1"),
        ((2, 4), (2, 4), (5, 4), True, "symmetric holds for in-batch negatives only"),
    ],
)
def test_bad_input_is_named(
    query: tuple[int, ...],
    key: tuple[int, ...],
    negatives: tuple[int, ...] | None,
    symmetric: bool,
    message: str,
) -> None:
    queue = None if negatives is None else torch.randn(negatives)
    with pytest.raises(ValueError, match=message):
        info_nce(torch.randn(query), torch.randn(key), queue, 0.1, symmetric=symmetric)


def test_topk_accuracy_against_sorting() -> None:
    logits, target = rows(50, 9, 3), torch.arange(50) % 9
    ranked = logits.argsort(dim=1, descending=True)
    expected = [(ranked[:, :k] == target[:, None]).any(dim=1).double().mean() for k in (1, 3)]
    assert [a.item() for a in topk_accuracy(logits, target, (1, 3))] == pytest.approx(
        [e.item() for e in expected]
    )


def test_ties_count_as_broken_at_random() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 2.0, 2.0, 1.0]])
    top1, top2 = topk_accuracy(logits, torch.tensor([0, 3]), (1, 2))
    assert top1.item() == pytest.approx((1 / 3 + 0) / 2)
    assert top2.item() == pytest.approx((2 / 3 + 0) / 2)


def test_collapse_scores_at_chance() -> None:
    z = torch.ones(4, 2)
    both = contrastive_accuracy_and_entropy(z, z, temperature=0.1, both_views=True)
    assert both.top1.item() == pytest.approx(1 / 7)
    assert both.top5.item() == pytest.approx(5 / 7)
    assert both.entropy.item() == pytest.approx(math.log(7), rel=1e-6)
    assert contrastive_accuracy_and_entropy(z, z).top1.item() == pytest.approx(1 / 4)
    assert contrastive_accuracy_and_entropy(z, z, torch.ones(3, 2)).top1.item() == pytest.approx(
        1 / 4
    )


def test_aligned_embeddings_score_full_and_self_is_no_candidate() -> None:
    z = torch.eye(6)
    metrics = contrastive_accuracy_and_entropy(z, z, temperature=0.05, both_views=True)
    assert metrics.top1.item() == metrics.top5.item() == 1.0
    assert metrics.entropy.item() < 1e-5
    queue = contrastive_accuracy_and_entropy(z[:3], z[:3], z[3:], 0.05)
    assert queue.top1.item() == 1.0


def test_entropy_in_nats_ignores_masked_entries() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]])
    assert softmax_entropy(logits).item() == pytest.approx(math.log(2) / 2)
