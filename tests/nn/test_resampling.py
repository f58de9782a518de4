"""Intervals of metrics that are no means over images: slow references, and how often they hold."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from sslkit.builtin.evaluators.segmentation import resampled_scores
from sslkit.evaluation.statistics import (
    Interval,
    resampled_difference,
    resampled_interval,
    score_difference,
    score_interval,
)
from sslkit.nn.average_precision import THRESHOLDS, Matches, average_precision
from sslkit.nn.resampling import RESAMPLES, resample
from sslkit.nn.segmentation import (
    class_counts,
    mean_intersection_over_union,
    pixel_accuracy,
    scores_of_counts,
)
from tests.nn.test_average_precision import scenario


def drawn(num_images: int, seed: int = 0) -> Tensor:
    """How often each resample has each image."""
    return resample(lambda counts: counts, num_images, seed)


def test_resamples_follow_from_seed_and_number_of_images_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = drawn(40)
    assert counts.shape == (RESAMPLES, 40)
    assert (counts.sum(dim=1) == 40).all()
    assert counts.mean() == 1.0
    assert counts.var(dim=0).mean() == pytest.approx(39 / 40, rel=0.03)  # of a multinomial
    assert not torch.equal(counts, drawn(40, seed=1))
    monkeypatch.setattr("sslkit.nn.resampling._BLOCK_ELEMENTS", 130)
    assert torch.equal(counts, drawn(40))


def test_a_mean_has_the_interval_of_a_mean() -> None:
    """On metrics that are means the bootstrap finds what the formulas of scores say."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 150, generator=generator) < 0.8).double()

    def mean(scores: Tensor) -> Tensor:
        return resample(lambda counts: counts @ scores / len(scores), len(scores), 0)

    for expected, found in [
        (score_interval(first), resampled_interval(float(first.mean()), mean(first), 150)),
        (
            score_difference(first, second),
            resampled_difference(float((first - second).mean()), mean(first), mean(second), 150),
        ),
    ]:
        assert found.mean == pytest.approx(expected.mean)
        assert found.low == pytest.approx(expected.low, abs=0.005)
        assert found.high == pytest.approx(expected.high, abs=0.005)
    right = torch.ones(30, dtype=torch.float64)
    found = resampled_interval(1.0, mean(right), 30)
    assert found == pytest.approx(score_interval(right))  # a width where nothing was wrong


def test_splits_without_a_value_are_left_out() -> None:
    values = torch.linspace(0.4, 0.6, 100).double()
    some = torch.cat([values, torch.full((7,), float("nan"), dtype=torch.float64)])
    assert resampled_interval(0.5, some, 20) == resampled_interval(0.5, values, 20)
    assert np.isnan(resampled_interval(0.5, some[-7:], 20).low)
    with pytest.raises(ValueError, match="cannot be paired"):
        resampled_difference(0.0, values, some, 20)


# --- Segmentation ---------------------------------------------------------------------------------


def tables(images: int, seed: int, skill: float = 2.0) -> Tensor:
    """(M, 4, 4) confusions: images of 100 pixels have few classes each and are easy or hard."""
    rng = np.random.default_rng(seed)
    found = np.zeros((images, 4, 4), dtype=np.int64)
    for table in found:
        pixels = rng.multinomial(100, rng.dirichlet([2.0, 0.5, 0.3, 0.2]))
        right = rng.beta(skill, 1.0)
        for label, count in enumerate(pixels):
            chances = np.full(4, (1.0 - right) / 3)
            chances[label] = right
            table[label] = rng.multinomial(count, chances)
    return torch.from_numpy(found)


def counts_of(confusions: Tensor) -> Tensor:
    return torch.stack([class_counts(each) for each in confusions])


def test_resampled_scores_are_those_of_the_drawn_images() -> None:
    confusions = tables(25, seed=0)
    found = resampled_scores(counts_of(confusions), seed=3)
    for split, counts in list(enumerate(drawn(25, seed=3).long()))[::50]:
        whole = confusions[torch.arange(25).repeat_interleave(counts)].sum(dim=0)
        assert found["miou"].values[split] == pytest.approx(mean_intersection_over_union(whole))
        assert found["pixel_accuracy"].values[split] == pytest.approx(pixel_accuracy(whole))
    assert found["miou"].num_images == 25


def coverage(find: Callable[[int], Interval], truth: float, repeats: int = 150) -> float:
    found = map(find, range(repeats))
    return fmean(low <= truth <= high for _, low, high in found)


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("images", [30, 200])
def test_coverage_of_mean_intersection_over_union(images: int) -> None:
    """Also of the difference of two subjects that find the same images hard."""
    good = counts_of(tables(5000, seed=1))
    bad = good.clone()
    bad[:, 0] = (bad[:, 0] * torch.rand(5000, 4, dtype=torch.float64)).floor()
    of_all = [float(scores_of_counts(each.sum(dim=0))[0]) for each in (good, bad)]
    generator = torch.Generator().manual_seed(images)

    def pair(_: int) -> tuple[Interval, Interval]:
        rows = torch.randint(5000, (images,), generator=generator)
        value = [float(scores_of_counts(each[rows].sum(dim=0))[0]) for each in (good, bad)]
        a, b = (resampled_scores(each[rows], 0)["miou"].values for each in (good, bad))
        difference = resampled_difference(value[0] - value[1], a, b, images)
        return resampled_interval(value[0], a, images), difference

    pairs = [pair(number) for number in range(150)]
    assert coverage(lambda i: pairs[i][0], of_all[0]) > 0.9
    assert coverage(lambda i: pairs[i][1], of_all[0] - of_all[1]) > 0.9


# --- Detection ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_resampled_precision_is_that_of_the_drawn_images(seed: int) -> None:
    """With crowds, several classes, and images without objects; a class may not be drawn at all."""
    truths, found = scenario(seed, images=12, classes=3)
    rng = np.random.default_rng(seed)
    for each in found:  # equal scores come in the order of the images, which are then others
        each.scores[:] = rng.random(len(each.scores))
    matches = Matches.of(truths, found, 3)
    ones = torch.ones(1, 12, dtype=torch.float64)
    np.testing.assert_allclose(matches.drawn(ones)[0], average_precision(truths, found, 3))
    counts = torch.cat([drawn(12, seed)[:12], torch.zeros(1, 12).double()])
    counts[-1, :2] = 6.0
    for table, each in zip(matches.drawn(counts), counts.long().tolist(), strict=True):
        rows = [row for row, count in enumerate(each) for _ in range(count)]
        expected = average_precision([truths[r] for r in rows], [found[r] for r in rows], 3)
        np.testing.assert_allclose(table, expected)


@pytest.mark.slow  # 5 seconds
def test_coverage_of_average_precision() -> None:
    """Average precision of 40 images is too high by more than its deviation; an interval around it
    that did not know would hold the truth in 81 % of the cases."""
    images, (truths, found) = 40, scenario(0, images=1000, classes=3)
    matches = Matches.of(truths, found, 3, THRESHOLDS[::5])
    by_image = [{each.image: each for each in matched} for matched in matches.by_class]
    generator = torch.Generator().manual_seed(images)

    def interval(_: int) -> Interval:
        rows = torch.randint(1000, (images,), generator=generator).tolist()
        these = Matches(
            [[of[r]._replace(image=i) for i, r in enumerate(rows) if r in of] for of in by_image], 2
        )
        values = resample(lambda counts: these.drawn(counts).mean(dim=(1, 2)), images, 0)
        return resampled_interval(float(these.average_precision().mean()), values, images)

    assert coverage(interval, float(matches.average_precision().mean()), repeats=100) > 0.88
