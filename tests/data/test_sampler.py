"""What stands between source and loader: its state is the step."""

from __future__ import annotations

import pytest
import torch

from sslkit.data.loader import TrainLoader
from sslkit.data.sampler import Sampler, ShuffledSampler
from sslkit.data.views import view_maker
from sslkit.errors import RecipeError
from sslkit.randomness import Order
from tests.data.series import Waves, Windows, store


def test_batches_are_the_order_of_the_epoch_in_parts():
    sampler = ShuffledSampler(50, 8, seed=3)
    assert sampler.steps_per_epoch == 6
    order = Order(3, 2, 50)[:]
    assert torch.equal(torch.cat([sampler.batch(2, step) for step in range(6)]), order[:48])


def test_any_step_is_as_when_it_is_reached_in_turn():
    turn = ShuffledSampler(200_000, 512, seed=1)
    in_turn = {(e, s): turn.batch(e, s) for e in range(2) for s in range(4)}
    jumping = ShuffledSampler(200_000, 512, seed=1)
    for epoch, step in ((1, 3), (0, 0), (1, 2), (0, 3)):
        assert torch.equal(jumping.batch(epoch, step), in_turn[epoch, step])


def test_rows_are_the_only_positions():
    rows = torch.tensor([5, 9, 100, 1000, 77])
    sampler = ShuffledSampler(2000, 2, 0, rows)
    assert sampler.steps_per_epoch == 2
    for epoch in range(3):
        found = torch.cat([sampler.batch(epoch, step) for step in range(2)])
        assert set(found.tolist()) <= set(rows.tolist())
        assert len(set(found.tolist())) == 4


def test_too_few_samples_for_one_batch_are_refused():
    with pytest.raises(RecipeError, match="batch_size: 9 is more than the 8 training images"):
        ShuffledSampler(8, 9, 0)


class HalfOf(Sampler):
    """Every other sample of each batch of another sampler: what one of two ranks would read."""

    def __init__(self, whole: Sampler, rank: int) -> None:
        self.whole, self.rank = whole, rank
        self.batch_size = whole.batch_size // 2

    @property
    def steps_per_epoch(self) -> int:
        return self.whole.steps_per_epoch

    def batch(self, epoch: int, step: int) -> torch.Tensor:
        return self.whole.batch(epoch, step)[self.rank :: 2]


def test_a_rank_is_a_sampler_and_changes_neither_source_nor_loader():
    maker = view_maker(store(Waves()), Windows(), torch.device("cpu"))
    whole = ShuffledSampler(50, 8, 5)

    def loaded(sampler: Sampler) -> list:
        return list(TrainLoader(maker, sampler, seed=5, num_threads=0).epoch(1, 2))

    both = [loaded(HalfOf(whole, rank)) for rank in range(2)]
    for batch, first, second in zip(loaded(whole), *both, strict=True):
        for part, half in enumerate((first, second)):
            assert torch.equal(half.indices, batch.indices[part::2])
            assert torch.equal(half.views[1], batch.views[1][part::2])
            assert torch.equal(half.labels, batch.labels[part::2])
