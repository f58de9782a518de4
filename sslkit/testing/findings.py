"""What evaluators find, held against what `Evaluation` promises."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from sslkit.api import Evaluation, FeatureBank
from sslkit.evaluation.scores import score_bounds

from .laws import LawBrokenError, refuse
from .small_runs import listed

_ROUNDING = 1e-6


def tensors_of(bank: FeatureBank) -> dict[str, torch.Tensor]:
    """What a bank holds."""
    names = ("train", "test", "train_labels", "test_labels")
    return {name: getattr(bank, name) for name in names}


def said(found: Evaluation) -> str:
    """The metrics, or why there are none."""
    if found.skipped is not None:
        return f"skipped: {found.skipped}"
    return ", ".join(f"{name} {float(value):.4g}" for name, value in found.metrics.items())


def refuse_odd(found: Evaluation, of: str = "") -> None:
    """Refuses what cannot be reported."""
    for what in (found.skipped, found.warning, found.stop, *found.notes):
        odd = what is not None and (not isinstance(what, str) or not what or "\n" in what)
        refuse(odd, f"it said {what!r}{of}, which is no line of text")
    if found.skipped is None and not found.metrics:
        raise LawBrokenError(f"it found no metrics{of}, and gave no reason")
    for name, value in found.metrics.items():
        number = float(value)
        refuse(not math.isfinite(number), f"{name} is {number}{of}")


def refuse_out_of_bounds(found: Evaluation) -> None:
    """Refuses scores and shares that are none."""
    for name, value in found.metrics.items():
        low, high = score_bounds(name)
        slack = 1e-9
        refuse(
            not low - slack <= value <= high + slack,
            f"{name} is {value:.4g}, and lies between {low:g} and {high:g} by its name",
        )


def averages_of_images(found: Evaluation, count: int) -> str | None:
    """Refuses `per_image` that does not average to its metric. count: test images."""
    for name, scores in found.per_image.items():
        values = scores.values.double()
        refuse(len(values) != count, f"{name} has scores of {len(values)} of {count} images")
        known = ~values.isnan()
        weights = torch.ones_like(values) if scores.weights is None else scores.weights.double()
        inside = values[known]
        refuse(
            len(inside) and not bool(((inside >= 0.0) & (inside <= 1.0)).all()),
            f"{name} has scores of images from {_range(inside.tolist())}",
        )
        mean = float((weights[known] * inside).sum() / weights[known].sum())
        _refuse_other_mean(found, name, mean, "the scores of images")
    return listed(list(found.per_image)) or None


def choosing(found: Evaluation) -> list[str]:
    """Metrics of which some test images do not count."""
    return [name for name, each in found.per_image.items() if bool(each.values.isnan().any())]


def averages_of_draws(found: Evaluation) -> str | None:
    """Refuses `draws` that do not average to their metric."""
    for name, values in found.draws.items():
        refuse(not values, f"{name} has no draws")
        _refuse_other_mean(found, name, sum(values) / len(values), "the draws")
    return listed(list(found.draws)) or None


def surrounded_by_resamples(found: Evaluation) -> str | None:
    """Refuses `resamples` that are not of their metric."""
    for name, each in found.resamples.items():
        refuse(name not in found.metrics, f"resampled values are of '{name}', which is no metric")
        values = each.values[~each.values.isnan()].tolist()
        refuse(not values, f"{name} has no resampled value that is a number")
        metric = float(found.metrics[name])
        refuse(
            not min(values) <= metric <= max(values),
            f"{name} is {metric:.4g}, and its resampled values are {_range(values)}",
        )
    return listed(list(found.resamples)) or None


def _refuse_other_mean(found: Evaluation, name: str, mean: float, of: str) -> None:
    refuse(name not in found.metrics, f"{of} are of '{name}', which is no metric")
    metric = float(found.metrics[name])
    refuse(
        not abs(mean - metric) <= _ROUNDING * max(abs(metric), 1.0),
        f"{name} is {metric:.6g}, and {of} average to {mean:.6g}",
    )


def _range(values: Iterable[float]) -> str:
    values = list(values)
    return f"{min(values):.4g} to {max(values):.4g}"


def differing(one: Evaluation, other: Evaluation) -> str:
    """The first metric that is not the same to the bit, in words; empty where there is none."""
    for name in dict.fromkeys((*one.metrics, *other.metrics)):
        was, now = one.metrics.get(name), other.metrics.get(name)
        if repr(was) != repr(now):
            return f"{name} {was!r} became {now!r}"
    return "" if one.skipped == other.skipped else f"skipped: {other.skipped}"
