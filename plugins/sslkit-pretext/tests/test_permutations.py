"""The permutations of Jigsaw: chosen as the paper says, and the same everywhere."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import pytest
import torch
from sslkit_pretext.permutations import far_permutations
from torch import Tensor


def mean_distance(one: tuple[int, ...], others: list[tuple[int, ...]]) -> Fraction:
    """Mean Hamming distance, from the definition."""
    places = [sum(a != b for a, b in zip(one, other, strict=True)) for other in others]
    return Fraction(sum(places), len(places))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_is_as_far_from_those_before_as_any_could_be(seed: int) -> None:
    chosen = [tuple(row) for row in far_permutations(24, seed, length=4).tolist()]
    assert sorted(chosen) == sorted(permutations(range(4)))
    for count in range(1, 24):
        left = chosen[count:]
        best = max(mean_distance(other, chosen[:count]) for other in left)
        assert mean_distance(chosen[count], chosen[:count]) == best


def agreements(rows: Tensor, others: Tensor) -> Tensor:
    """(N, M): places in which rows (N, 9) and others (M, 9) agree."""
    one_hot = [torch.nn.functional.one_hot(each, 9).flatten(1).float() for each in (rows, others)]
    return one_hot[0] @ one_hot[1].T


@pytest.mark.slow  # 4 seconds
def test_of_all_362_880_none_would_be_further() -> None:
    chosen = far_permutations(12, 0)
    every = torch.tensor(list(permutations(range(9))))
    for count in (1, 11):
        sums = agreements(every, chosen[:count]).sum(1)
        new = agreements(every, chosen[:count]).amax(1) < 9  # not yet chosen
        assert agreements(chosen[count : count + 1], chosen[:count]).sum() == sums[new].min()


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize("count", [100, 1000])
def test_no_set_of_this_size_is_further_apart_on_the_average(count: int) -> None:
    """At each place, the fewest pairs agree where each tile stands there equally often."""
    chosen = far_permutations(count, 0)
    together = agreements(chosen, chosen)
    assert (together == 9).sum() == count  # all different
    found = (together.sum() - 9 * count) / 2
    often, more = divmod(count, 9)
    fewest = 9 * (more * often * (often + 1) // 2 + (9 - more) * often * (often - 1) // 2)
    assert found == fewest


@pytest.mark.slow  # 2 seconds
def test_they_follow_from_the_seed() -> None:
    """These classes are part of what a trained head means: they never change."""
    assert far_permutations(4, 0).tolist() == [
        [7, 4, 3, 8, 1, 2, 0, 5, 6],
        [3, 1, 0, 6, 2, 7, 5, 8, 4],
        [8, 2, 7, 5, 4, 0, 6, 1, 3],
        [6, 0, 2, 4, 3, 1, 8, 7, 5],
    ]
    assert torch.equal(far_permutations(50, 0)[:4], far_permutations(4, 0))
    assert not torch.equal(far_permutations(4, 0), far_permutations(4, 1))


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="there are 6 permutations of 3, not 7"):
        far_permutations(7, 0, length=3)
