"""The feature queue against a list."""

from __future__ import annotations

import pytest
import torch

from sslkit.nn.queue import FeatureQueue


@pytest.mark.parametrize("size", [1, 5, 8])
def test_any_batch_size_against_a_slow_reference(size: int) -> None:
    torch.manual_seed(size)
    queue = FeatureQueue(size, 3, random_start=False)
    kept: list[list[float]] = []
    for batch in (3, 0, 1, 8, 2, 7, 13, 5):
        rows = torch.randn(batch, 3)
        queue.push(rows)
        kept = [*kept, *rows.tolist()][-size:]
        assert sorted(queue.recent.tolist()) == sorted(kept)
        assert 0 <= int(queue.pointer) < size
        if len(kept) == size:
            oldest_first = queue.features.roll(-int(queue.pointer), dims=0)
            assert oldest_first.tolist() == kept


def test_starts_with_random_unit_vectors() -> None:
    queue = FeatureQueue(16, 4)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(16))
    assert len(queue) == len(queue.recent) == 16


def test_a_checkpoint_holds_everything() -> None:
    first, second = FeatureQueue(7, 2), FeatureQueue(7, 2)
    first.push(torch.randn(5, 2))
    second.load_state_dict(first.state_dict())
    rows = torch.randn(4, 2)
    first.push(rows)
    second.push(rows)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.pointer, second.pointer)


def test_holds_float32_and_no_graph() -> None:
    queue = FeatureQueue(4, 2)
    queue.push(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert queue.features.dtype == torch.float32
    assert not queue.features.requires_grad


def test_bad_use_is_named() -> None:
    with pytest.raises(ValueError, match="size >= 1"):
        FeatureQueue(0, 4)
    with pytest.raises(ValueError, match=r"rows of width 4, not \(2, 3\)"):
        FeatureQueue(8, 4).push(torch.ones(2, 3))
