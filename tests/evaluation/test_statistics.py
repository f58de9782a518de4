from __future__ import annotations

import math

import numpy as np
import pytest

from sslkit.evaluation.statistics import mean_interval, paired_difference


def test_mean_interval_against_tables() -> None:
    # t(0.975, 4) = 2.776445 from printed tables; the deviation of 1..5 is sqrt(2.5).
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert mean == 3.0
    assert (low, high) == pytest.approx((3.0 - half, 3.0 + half), abs=1e-6)
    assert mean_interval([1.0, 2.0], confidence=0.9).high == pytest.approx(
        1.5 + 6.3137515 * math.sqrt(0.5 / 2), abs=1e-6
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
    a, b = (shared + 0.1).tolist(), shared.tolist()
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
