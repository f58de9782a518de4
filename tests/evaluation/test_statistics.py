from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from sslkit.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    score_difference,
    score_interval,
)


def test_mean_interval_against_tables() -> None:
    # t(0.975, 4) = 2.776445 from printed tables; the deviation of 1..5 is sqrt(2.5).
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert mean == 3.0
    assert (low, high) == pytest.approx((3.0 - half, 3.0 + half), abs=1e-6)
    assert mean_interval([1.0, 2.0, 3.0], confidence=0.9).high == pytest.approx(
        2.0 + 2.9199856 * math.sqrt(1.0 / 3), abs=1e-6
    )


def test_paired_difference_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.05, 20), rng.normal(0.7, 0.05, 20)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, low, high = paired_difference(a.tolist(), b.tolist())
    assert mean == pytest.approx(float((a - b).mean()))
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_pairing_cancels_what_the_draws_share() -> None:
    shared = np.random.default_rng(1).normal(0.0, 1.0, 20)
    own = np.random.default_rng(2).normal(0.0, 1e-4, 20)
    a, b = (shared + 0.1 + own).tolist(), shared.tolist()
    assert paired_difference(a, b).low > 0.0999
    assert mean_interval(a).low < mean_interval(b).high


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        _, low, high = mean_interval(rng.normal(0.6, 0.1, 20).tolist())
        covered += low <= 0.6 <= high
    assert abs(covered / 600 - 0.95) < 0.03  # 3.4 standard errors


def test_single_values_and_mistakes() -> None:
    mean, low, high = mean_interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=95)


def test_too_few_and_equal_values_have_no_interval() -> None:
    for values in ([0.5], [0.5, 0.6], [1.0, 1.0, 1.0]):
        _, low, high = mean_interval(values)
        assert math.isnan(low)
        assert math.isnan(high)


def test_intervals_end_at_their_bounds() -> None:
    _, low, high = mean_interval([0.9, 0.99, 1.0], bounds=(0.0, 1.0))
    assert 0.7 < low < 0.9
    assert high == 1.0
    assert paired_difference([1.0, 0.9, 1.0], [0.0, 0.2, 0.0], bounds=(-1.0, 1.0)).high == 1.0


# --- Over test images -----------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "of"), [(0, 7), (1, 2), (47, 50), (359, 359), (8123, 10_000)])
def test_proportions_have_the_interval_of_wilson(right: int, of: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right, of).proportion_ci(method="wilson")
    mean, low, high = score_interval(proportion(right, of))
    assert mean == pytest.approx(right / of)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= low <= mean <= high <= 1.0
    assert low < high, "also where all are right"


def test_images_that_do_not_count_are_left_out() -> None:
    scores = torch.tensor([1.0, math.nan, 0.0, 1.0])
    assert score_interval(scores) == score_interval(torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="at least one image"):
        score_interval(torch.tensor([math.nan]))


def test_differences_are_paired_by_image() -> None:
    shared = torch.tensor([1.0] * 180 + [0.0] * 20)
    better = shared.clone()
    better[185:195] = 1.0
    paired = score_difference(better, shared)
    assert paired.mean == pytest.approx(0.05)
    assert paired.low > 0.0  # 10 images gained and none lost
    apart = score_difference(better, shared.flip(0))
    assert apart.low < 0.0, "the same accuracies, on other images, say less"
    same = score_difference(shared, shared)
    assert same.mean == 0.0
    assert same.low == pytest.approx(-same.high)
    assert 0.0 < same.high < 0.02
    assert score_difference(torch.ones(5), torch.zeros(5)).high == 1.0
    with pytest.raises(ValueError, match="cannot be paired"):
        score_difference(torch.ones(3), torch.ones(4))


def proportion(right: int, of: int) -> Tensor:
    return (torch.arange(of) < right).float()


def covered(intervals: Iterable[Interval], truth: float) -> float:
    """Part of the intervals that hold the truth."""
    return fmean(low <= truth <= high for _, low, high in intervals)


REPEATS = 400
"""A coverage of 95 % is then seen as 92 to 98 %."""


@pytest.mark.parametrize(("of", "truth"), [(30, 0.9), (360, 0.5), (360, 0.98), (2000, 0.999)])
def test_coverage_of_proportions(of: int, truth: float) -> None:
    generator = torch.Generator().manual_seed(of)
    drawn = (torch.rand(REPEATS, of, generator=generator) < truth).float()
    assert covered(map(score_interval, drawn), truth) > 0.9


@pytest.mark.parametrize(("of", "a", "b"), [(60, 0.9, 0.6), (360, 0.98, 0.95), (360, 0.7, 0.7)])
def test_coverage_of_paired_differences(of: int, a: float, b: float) -> None:
    generator = torch.Generator().manual_seed(of)
    ease = torch.rand(REPEATS, of, generator=generator)  # an image is easy for both, or for none
    other = 0.7 * ease + 0.3 * torch.rand(REPEATS, of, generator=generator)
    first, second = (ease < a).float(), (other < b).float()
    truth = a - float((0.7 * torch.rand(10**6) + 0.3 * torch.rand(10**6) < b).float().mean())
    intervals = (score_difference(x, y) for x, y in zip(first, second, strict=True))
    assert covered(intervals, truth) > 0.9


def test_coverage_of_a_mean_over_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([5, 20, 60, 100])
    classes, each = torch.arange(4).repeat_interleave(sizes), torch.tensor([0.6, 0.8, 0.9, 0.99])
    drawn = (torch.rand(REPEATS, 185, generator=generator) < each[classes]).float()
    weights = 1.0 / sizes[classes]
    intervals = [score_interval(scores, weights) for scores in drawn]
    assert covered(intervals, float(each.mean())) > 0.9
    assert intervals[0].mean == pytest.approx(mean_class_accuracy_of(drawn[0], classes))


def mean_class_accuracy_of(right: Tensor, classes: Tensor) -> float:
    return fmean(float(right[classes == label].mean()) for label in range(4))


@pytest.mark.parametrize("draws", [3, 20])
def test_coverage_over_draws_and_images(draws: int) -> None:
    """Draws of labels and images both vary: an interval over one alone covers too little."""
    generator = torch.Generator().manual_seed(draws)

    def right(repeats: int, images: int) -> Tensor:
        of_draws = 0.4 * torch.randn(repeats, draws, 1, generator=generator)
        of_images = 1.5 * torch.randn(repeats, 1, images, generator=generator)
        chance = torch.sigmoid(1.0 + of_draws + of_images)
        return (torch.rand(repeats, draws, images, generator=generator) < chance).double()

    truth = float(right(4000, 60).mean())
    drawn = right(REPEATS, 100)
    both = (score_interval(x.mean(dim=0), None, x.mean(dim=1).tolist()) for x in drawn)
    assert covered(both, truth) > 0.88
    of_images = covered((score_interval(x.mean(dim=0)) for x in drawn), truth)
    of_draws = covered((mean_interval(x.mean(dim=1).tolist()) for x in drawn), truth)
    assert min(of_images, of_draws) < 0.8
