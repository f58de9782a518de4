"""Ratios of speeds, paired by round, with exact intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A median and a range that holds the true median."""

    median: float
    low: float
    high: float
    coverage: float
    """Probability that the range holds the true median, whatever the distribution: at least 0.95
    from 6 values on, less for fewer."""
    n: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def paired_ratios(
    seconds: Sequence[float], work: float, other_seconds: Sequence[float], other_work: float
) -> list[float]:
    """Speed of the first as a multiple of the other's, round by round."""
    return [
        (work / mine) / (other_work / theirs)
        for mine, theirs in zip(seconds, other_seconds, strict=False)
    ]


def ratio_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Median and the narrowest symmetric pair of order statistics that covers the true median with
    probability `level`; all values where there are too few for that.

    The number of values below the true median is binomial(n, 1/2), so the range from the k-th
    smallest to the k-th largest covers it with 1 - 2 P(X < k): no distribution is assumed, and one
    round that was disturbed moves nothing. Raises ValueError without values."""
    if not values:
        raise ValueError("no rounds were measured")
    ordered, n = sorted(values), len(values)
    rank = 1
    while rank < n // 2 and _coverage(n, rank + 1) >= level:
        rank += 1
    low, high = ordered[rank - 1], ordered[n - rank]
    return Interval(statistics.median(ordered), low, high, _coverage(n, rank), n)


def _coverage(n: int, rank: int) -> float:
    tail = sum(math.comb(n, k) for k in range(rank)) / 2.0**n
    return max(0.0, 1.0 - 2.0 * tail)
