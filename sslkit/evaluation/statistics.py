"""Intervals for means and for paired differences: over seeds or draws, and over test images.

Shapes: M test images, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan, sqrt
from statistics import NormalDist, fmean, variance
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 3
"""Values that an interval by Student's t takes at least: with two, t is 12.7 times the standard
error, which is itself hardly known."""
_ROUNDING = 1e-12


class Interval(NamedTuple):
    """A mean and its confidence interval; `low` and `high` are NaN where there is none."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float],
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-inf, inf),
) -> Interval:
    """The mean and its two-sided interval by Student's t with n - 1 degrees of freedom. Without an
    interval for fewer than three values, and where all are equal: their spread is then not known.

    bounds: what the mean can be; the interval ends there, which costs no coverage. Raises
    ValueError without values, or if the confidence is not between 0 and 1."""
    if not values:
        raise ValueError("an interval needs at least one value")
    _check(confidence)
    mean = fmean(values)
    if len(values) < FEWEST or no_spread(values):
        return Interval(mean, nan, nan)
    half = _student(len(values) - 1, confidence) * sqrt(variance(values, mean) / len(values))
    return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]))


def no_spread(values: Sequence[float]) -> bool:
    """Whether all are equal, but for rounding."""
    return max(values) - min(values) <= _ROUNDING * max(map(abs, values))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-inf, inf),
) -> Interval:
    """The mean of a[i] - b[i] and its interval, as `mean_interval` has it. Pairs share their draw
    (labels, seed), which cancels the spread that draws have in common.

    Raises ValueError if the lengths differ or are 0."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence, bounds)


# --- Over test images -----------------------------------------------------------------------------


def score_interval(
    values: Tensor,  # (M,)
    weights: Tensor | None = None,  # (M,)
    draws: Sequence[float] = (),
    confidence: float = 0.95,
) -> Interval:
    """The mean of a score of each test image, 0 to 1, and the interval for other images like them.

    Where scores are 0 or 1, and weigh alike, this is the interval of Wilson 1927, which stays
    between 0 and 1 and has a width where all are right. Otherwise Wilson's formula gets the number
    of images that would give a proportion the variance of the mean (Korn and Graubard 1998), one
    more image counted that varies as much as any can.

    values: NaN where an image does not count. weights: default equal. draws: (D,) means over the
    images, one for each draw of labels, where `values` are means over draws; from three draws on
    the interval is over draws and images, their variances added, with t for the degrees of freedom
    of the sum (Satterthwaite 1946). What images and draws do together is counted twice: the
    interval is rather too wide than too narrow. Raises ValueError without an image."""
    _check(confidence)
    score, share, size = _counted(values, weights)
    mean = min(max(float(share @ score), 0.0), 1.0)
    seen = float(share.square() @ (score - mean).square())
    return _interval(mean, seen, size, draws, confidence)


def score_difference(
    a: Tensor,  # (M,)
    b: Tensor,  # (M,)
    weights: Tensor | None = None,
    draws: tuple[Sequence[float], Sequence[float]] = ((), ()),
    confidence: float = 0.95,
) -> Interval:
    """The mean of a - b, scores of the same test images, and its interval: that of Bonett and Price
    2012 for paired proportions. Two more images, one right in `a` alone and one in `b` alone, keep
    its width where both are right on the same. Arguments as for `score_interval`; draws of both
    that are equal in number are paired. Raises ValueError if the lengths differ."""
    if len(a) != len(b):
        raise ValueError(f"scores of {len(a)} images cannot be paired with those of {len(b)}")
    _check(confidence)
    difference, share, size = _counted(a.double() - b.double(), weights)
    mean = float(share @ difference)
    squares = float(share.square() @ difference.square())
    paired = [x - y for x, y in zip(*draws, strict=True)] if len(draws[0]) == len(draws[1]) else []
    return _difference(mean, squares, size, paired, confidence)


def resampled_interval(
    value: float, resamples: Tensor, num_images: int, confidence: float = 0.95
) -> Interval:
    """A score of all test images that is no mean over them, and the interval that `score_interval`
    has, with the variance over resampled test splits as that of the mean, and around the value
    less its bias: average precision is too high on few images, by about as much as that of
    resamples is above it. The interval holds the value itself in any case.

    value: 0 to 1. resamples: (R,), see `sslkit.nn.resampling.resample`; NaN is left out. Without an
    interval where fewer than three are left."""
    _check(confidence)
    resamples = resamples[~resamples.isnan()].double()
    if len(resamples) < FEWEST:
        return Interval(value, nan, nan)
    centre = min(max(2.0 * value - float(resamples.mean()), 0.0), 1.0)
    found = _interval(centre, float(resamples.var(correction=0)), num_images, (), confidence)
    return Interval(value, min(found.low, value), max(found.high, value))


def resampled_difference(
    value: float, a: Tensor, b: Tensor, num_images: int, confidence: float = 0.95
) -> Interval:
    """A difference of two such scores on the same test images, and the interval that
    `score_difference` has. a, b: (R,) on the same resampled test splits. Raises ValueError if their
    lengths differ."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} resamples cannot be paired with {len(b)}")
    _check(confidence)
    differences = a.double() - b.double()
    differences = differences[~differences.isnan()]
    if len(differences) < FEWEST:
        return Interval(value, nan, nan)
    centre = 2.0 * value - float(differences.mean())
    squares = float(differences.var(correction=0)) + centre**2 / num_images
    found = _difference(centre, squares, num_images, (), confidence)
    return Interval(value, min(found.low, value), max(found.high, value))


def _interval(
    mean: float, seen: float, size: float, draws: Sequence[float], confidence: float
) -> Interval:
    """seen: the variance of the mean of `size` images, as far as these show it."""
    most = mean * (1.0 - mean)
    of_images = (size * seen + most / size) / (size + 1.0)
    of_draws, freedom = _of_draws(draws)
    if most <= 0.0:
        return Interval(mean, *_wilson(mean, size, NormalDist().inv_cdf((1.0 + confidence) / 2.0)))
    quantile = _quantile(of_images, size, of_draws, freedom, confidence)
    return Interval(mean, *_wilson(mean, most / (of_images + of_draws), quantile))


def _difference(
    mean: float, squares: float, size: float, draws: Sequence[float], confidence: float
) -> Interval:
    """squares: the mean squared difference of an image over `size`. draws: paired differences."""
    middle = size * mean / (size + 2.0)
    of_images = ((size**2 * squares + 2.0) / (size + 2.0) - middle**2) / (size + 2.0)
    of_draws, freedom = _of_draws(draws)
    quantile = _quantile(of_images, size, of_draws, freedom, confidence)
    half = quantile * sqrt(of_images + of_draws)
    return Interval(mean, max(middle - half, -1.0), min(middle + half, 1.0))


def _counted(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Values and shares, which sum to 1, of the images that count, and how many they are worth:
    their number where they weigh alike (Kish 1965)."""
    values = values.double().cpu()
    counts = ~values.isnan()
    if not counts.any():
        raise ValueError("an interval needs the score of at least one image")
    share = values.new_ones(len(values)) if weights is None else weights.double().cpu()
    share = share[counts] / share[counts].sum()
    return values[counts], share, 1.0 / float(share.square().sum())


def _of_draws(draws: Sequence[float]) -> tuple[float, int]:
    """The variance of their mean, and its degrees of freedom; 0 for fewer than three."""
    if len(draws) < FEWEST:
        return 0.0, 0
    return variance(draws) / len(draws), len(draws) - 1


def _quantile(
    of_images: float, size: float, of_draws: float, freedom: int, confidence: float
) -> float:
    """Normal for images alone; else t for the sum of both variances."""
    if of_draws <= 0.0:
        return NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    parts = of_draws**2 / freedom + of_images**2 / max(size - 1.0, 1.0)
    return _student((of_images + of_draws) ** 2 / parts, confidence)


def _wilson(mean: float, size: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / size
    middle = (mean + square / 2.0) / (1.0 + square)
    half = sqrt(square * mean * (1.0 - mean) + square**2 / 4.0) / (1.0 + square)
    # Rounding must not take the mean itself out of its interval, nor a bound out of 0 to 1.
    return max(min(middle - half, mean), 0.0), min(max(middle + half, mean), 1.0)


def _student(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, (1.0 + confidence) / 2.0))


def _check(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
