"""Codes by Sinkhorn-Knopp against a matrix that is scaled in turns, and public code; the cross
entropy between views against loops."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.prototypes import cross_entropy_of_views, pairs_of_views, sinkhorn


def scores(images: int = 24, prototypes: int = 6, seed: int = 0) -> Tensor:
    """Cosines."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(images + prototypes, 4, generator=generator, dtype=torch.float64)
    z, centres = F.normalize(rows, dim=1).split([images, prototypes])
    return z @ centres.T


def slow_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The paper's: rows to 1 / K, columns to 1 / B, entry by entry."""
    count, width = scores.shape
    q = [[float((s / epsilon).exp()) for s in row] for row in scores]
    for _ in range(iterations):
        for k in range(width):
            total = sum(q[b][k] for b in range(count))
            for b in range(count):
                q[b][k] /= total * width
        for b in range(count):
            total = sum(q[b])
            q[b] = [each / (total * count) for each in q[b]]
    return torch.tensor(q, dtype=torch.float64) * count


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_equals_the_slow_reference(epsilon: float, iterations: int) -> None:
    found = sinkhorn(scores(), epsilon, iterations)
    torch.testing.assert_close(found, slow_sinkhorn(scores(), epsilon, iterations))


@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_lightly(iterations: int) -> None:
    theirs = pytest.importorskip("lightly.loss.swav_loss")
    expected = theirs.sinkhorn(scores(), iterations=iterations, epsilon=0.05)
    torch.testing.assert_close(sinkhorn(scores(), 0.05, iterations), expected)


def test_images_sum_to_1_and_prototypes_to_equal_parts() -> None:
    found = sinkhorn(scores(), epsilon=0.5, iterations=3)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(24, dtype=torch.float64))
    assert (found.sum(dim=0) / 4.0 - 1.0).abs().max() < 0.05
    exact = sinkhorn(scores(), epsilon=0.5, iterations=200)
    torch.testing.assert_close(exact.sum(dim=0), torch.full((6,), 4.0, dtype=torch.float64))


def test_equal_scores_give_uniform_codes() -> None:
    found = sinkhorn(torch.full((5, 8), 0.3))
    torch.testing.assert_close(found, torch.full((5, 8), 1 / 8))


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_epsilon_overflows(dtype: torch.dtype, epsilon: float) -> None:
    """exp(1 / 0.05) is 4.9e8, beyond float16; exp(1 / 0.01), and exp(-1 / 0.01), beyond float32."""
    given = scores().to(dtype)
    found = sinkhorn(given, epsilon, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=1), torch.ones(24))
    torch.testing.assert_close(
        found, sinkhorn(given.double(), epsilon, 3).float(), atol=1e-3, rtol=0
    )


def test_a_constant_added_to_an_image_changes_nothing() -> None:
    shift = torch.linspace(-3.0, 3.0, 24, dtype=torch.float64)[:, None]
    # Images are scaled last, and prototypes first: with one iteration it would matter.
    torch.testing.assert_close(sinkhorn(scores() + shift, 0.5, 100), sinkhorn(scores(), 0.5, 100))


def test_codes_have_no_gradient() -> None:
    assert not sinkhorn(scores().requires_grad_()).requires_grad


def test_earlier_images_are_scaled_along_and_left_out() -> None:
    everything = scores(30)
    found = sinkhorn(everything[:10], 0.05, 3, past=everything[10:])
    torch.testing.assert_close(found, sinkhorn(everything, 0.05, 3)[:10])


@pytest.mark.parametrize("past", [0, 7])
def test_divided_among_processes_it_is_the_same(past: int) -> None:
    """Two threads stand for them, which wait for each other wherever they gather."""
    everything = scores(20 + past)
    images, earlier = everything[:20], everything[20:]
    meeting, given = Barrier(2, timeout=30), [torch.empty(0)] * 2

    def codes(rank: int) -> Tensor:
        def gather(row: Tensor) -> Tensor:
            given[rank] = row
            meeting.wait()
            rows = torch.cat(given)
            meeting.wait()
            return rows

        return sinkhorn(images.split(10)[rank], past=earlier, gather=gather)

    with ThreadPoolExecutor(2) as pool:
        found = torch.cat(list(pool.map(codes, range(2))))
    torch.testing.assert_close(found, sinkhorn(images, past=earlier))


# --- Cross entropy between views ------------------------------------------------------------------


def test_a_view_is_not_paired_with_itself() -> None:
    assert pairs_of_views([0, 2], 4).tolist() == [[0, 1, 1, 1], [1, 1, 0, 1]]
    assert pairs_of_views([2], 3).tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("assigned", [(0, 1), (1, 3), (2,)])
def test_cross_entropy_is_the_mean_over_images_and_pairs(assigned: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    logits = torch.randn(3, 4, 50, dtype=torch.float64)
    target = torch.randn(3, len(assigned), 50, dtype=torch.float64).softmax(-1)
    found = cross_entropy_of_views(logits, target, pairs_of_views(assigned, 4))
    terms = [
        -sum(float(target[b, g, k] * logits[b, v].log_softmax(0)[k]) for k in range(50))
        for b in range(3)
        for g, place in enumerate(assigned)
        for v in range(4)
        if v != place
    ]
    assert found.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


def test_cross_entropy_sends_each_view_its_part_of_the_gradient() -> None:
    """(softmax - mean target of its pairs) x pairs / (B x all pairs), none through the target."""
    torch.manual_seed(3)
    logits = torch.randn(3, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 2, 5, dtype=torch.float64).softmax(-1)
    cross_entropy_of_views(logits, target, pairs_of_views([0, 1], 3)).backward()  # type: ignore[no-untyped-call]
    own = logits.detach().softmax(-1)
    wanted = [own[:, 0] - target[:, 1], own[:, 1] - target[:, 0], 2 * own[:, 2] - target.sum(1)]
    torch.testing.assert_close(logits.grad, torch.stack(wanted, dim=1) / (3 * 4))


def test_large_batches_of_many_prototypes_keep_their_digits_in_float32() -> None:
    """One dot product over 768,000 terms gave 8.039 for ln 3000, which is 8.006."""
    codes = torch.full((256, 2, 3000), 1 / 3000)
    loss = cross_entropy_of_views(torch.zeros(256, 8, 3000), codes, pairs_of_views((0, 1), 8))
    assert loss.item() == pytest.approx(math.log(3000), abs=1e-4)


def test_cross_entropy_is_in_float32_whatever_the_precision_around_it() -> None:
    """bfloat16 has the third digit of a probability of 0.003, and of ln 300."""
    torch.manual_seed(3)
    logits, target = torch.randn(8, 3, 300).bfloat16(), torch.randn(8, 2, 300).softmax(-1)
    pairs = pairs_of_views((0, 1), 3)
    exact = cross_entropy_of_views(logits.double(), target.double(), pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_entropy_of_views(logits, target, pairs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0.0)
