"""Which metrics are scores, by their usual names, between what bounds they lie, and a value of one
with its interval. Imports no torch: tables of runs need it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from .statistics import FEWEST

ACCURACY = "top1"
"""Metrics whose name begins so are accuracies, 0 to 1: the tables show them in percent."""
_OTHER_SCORES = re.compile(r"recall_at_.*|map|nmi|ari|miou|pixel_accuracy|ap(\d*|_.*)")
"""Other scores on the same scale: retrieval, clustering, segmentation and detection (`ap`, `ap50`,
`ap_small`)."""
_OTHER_SHARES = re.compile(r"(mean_per_class|selection_top1|selection_miou)(_.*)?")


_LOWER_IS_BETTER = re.compile(r"loss|error|seconds|^peak_memory_mb$|^data_wait_fraction$")
SUBJECTS = ("pixels", "raw", "untrained", "trained")
"""What is measured, in the order of columns. Only one of the first two is there: see
`SampleSpec.raw`."""


def is_score(metric: str) -> bool:
    """Whether a metric is a score, 0 to 1, which stands in the tables in percent."""
    return metric.startswith(ACCURACY) or _OTHER_SCORES.fullmatch(metric) is not None


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent wherever it stands: scores, and the shares beside them
    that the tables leave out, such as `mean_per_class`."""
    return is_score(metric) or _OTHER_SHARES.fullmatch(metric) is not None


def better(key: str) -> Literal["highest", "lowest"] | None:
    """Which value of the metric with this full key is the better one; None where that is not
    known, as of a plugin's metric or of `collapse/std`."""
    metric = key.rpartition("/")[2]
    if is_share(metric) or metric == "images_per_second":
        return "highest"
    return "lowest" if _LOWER_IS_BETTER.search(metric) else None


def score_bounds(metric: str, *, difference: bool = False) -> tuple[float, float]:
    """What a metric can be, or the difference of two of it."""
    if not is_share(metric):
        return -inf, inf
    low = -1.0 if metric == "ari" else 0.0  # the adjusted Rand index can be below chance
    return (low - 1.0, 1.0 - low) if difference else (low, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A measured value, and its 95 % interval where the evaluator made draws or scored images."""

    value: float
    low: float | None = None
    high: float | None = None
    draws: int = 1
    images: int | None = None
    """Test images that the interval is over; None where it is over draws alone."""
    noun: str = "image"
    """What these are: see `SampleSpec.noun`."""

    @property
    def over(self) -> str | None:
        """What the interval is over, such as "20 draws, 359 images"; None without one."""
        if self.low is None:
            return None
        parts = [f"{self.draws:,} draws"] if self.draws >= FEWEST else []
        return ", ".join([*parts, *([f"{self.images:,} {self.noun}s"] if self.images else [])])

    def to_json(self) -> dict[str, float | int | str | None]:
        return {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "draws": self.draws,
            "images": self.images,
            "interval_over": self.over,
        }


def _finite(value: float | None) -> float | None:
    """The value as JSON has it."""
    return value if value is not None and isfinite(value) else None
