"""Subsets of labelled images."""

from __future__ import annotations

import torch

from sslkit.nn.stratified import balanced_subset, random_order, ranks_in_class
from sslkit.randomness import SampleRandom

LABELS = torch.tensor([0] * 50 + [1] * 30 + [3] * 40)[torch.randperm(120)]


def counts(rows: torch.Tensor) -> list[int]:
    return LABELS[rows].bincount(minlength=4).tolist()


def test_subsets_are_balanced_nested_and_keyed() -> None:
    small, large = (balanced_subset(LABELS, total, seed=1, draw=0) for total in (12, 60))
    assert counts(small) == [4, 4, 0, 4]
    assert counts(large) == [20, 20, 0, 20]
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(small, small.sort().values)
    assert torch.equal(small, balanced_subset(LABELS, 12, seed=1, draw=0))
    for others in (balanced_subset(LABELS, 12, 2, 0), balanced_subset(LABELS, 12, 1, 1)):
        assert counts(others) == [4, 4, 0, 4]
        assert not torch.equal(others, small)


def test_what_does_not_divide_goes_to_classes_by_the_seed() -> None:
    more = set()
    for draw in range(20):
        found = counts(balanced_subset(LABELS, 13, seed=1, draw=draw))
        assert sorted(found) == [0, 4, 4, 5]
        more.add(found.index(5))
    assert more == {0, 1, 3}


def test_a_class_that_runs_out_is_made_up_for() -> None:
    rows = balanced_subset(LABELS, 110, seed=0, draw=0)
    assert len(rows.unique()) == 110
    assert counts(rows) == [40, 30, 0, 40]


def test_ranks_count_the_images_of_a_class() -> None:
    order = random_order(SampleRandom(0, "any", 0, torch.arange(120)))
    ranks = ranks_in_class(LABELS, order)
    for label in (0, 1, 3):
        mine = (label == LABELS).nonzero().squeeze(1)
        assert ranks[mine].sort().values.tolist() == list(range(len(mine)))
        in_order = [int(i) for i in order if LABELS[i] == label]
        assert ranks[in_order].tolist() == list(range(len(mine)))
