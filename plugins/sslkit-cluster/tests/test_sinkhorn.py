"""Codes by Sinkhorn-Knopp against a matrix that is scaled in turns, and public code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from sslkit_cluster.sinkhorn import sinkhorn
from torch import Tensor
from torch.nn import functional as F


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
