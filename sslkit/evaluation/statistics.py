"""Intervals for means and for paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, sqrt
from statistics import fmean, variance
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and its confidence interval; `low` and `high` are NaN for a single value."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean and its two-sided interval by Student's t with n - 1 degrees of freedom.

    Raises ValueError without values, or if the confidence is not between 0 and 1."""
    if not values:
        raise ValueError("an interval needs at least one value")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, nan, nan)
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    quantile = float(stdtrit(len(values) - 1, (1.0 + confidence) / 2.0))
    half = quantile * sqrt(variance(values, mean) / len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of a[i] - b[i] and its interval. Pairs share their draw (labels, seed), which
    cancels the spread that draws have in common.

    Raises ValueError if the lengths differ or are 0."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
