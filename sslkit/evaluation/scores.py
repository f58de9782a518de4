"""Which metrics are scores, by their usual names, and between what bounds they lie."""

from __future__ import annotations

import re
from math import inf

ACCURACY = "top1"
"""Metrics whose name begins so are accuracies, 0 to 1: the tables show them in percent."""
_OTHER_SCORES = re.compile(r"recall_at_.*|map|nmi|ari|miou|pixel_accuracy|ap(\d*|_.*)")
"""Other scores on the same scale: retrieval, clustering, segmentation and detection (`ap`, `ap50`,
`ap_small`)."""
_OTHER_SHARES = re.compile(r"(mean_per_class|selection_top1|selection_miou)(_.*)?")


def is_score(metric: str) -> bool:
    """Whether a metric is a score, 0 to 1, which stands in the tables in percent."""
    return metric.startswith(ACCURACY) or _OTHER_SCORES.fullmatch(metric) is not None


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent wherever it stands: scores, and the shares beside them
    that the tables leave out, such as `mean_per_class`."""
    return is_score(metric) or _OTHER_SHARES.fullmatch(metric) is not None


def score_bounds(metric: str, *, difference: bool = False) -> tuple[float, float]:
    """What a metric can be, or the difference of two of it."""
    if not is_share(metric):
        return -inf, inf
    low = -1.0 if metric == "ari" else 0.0  # the adjusted Rand index can be below chance
    return (low - 1.0, 1.0 - low) if difference else (low, 1.0)
