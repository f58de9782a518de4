"""What evaluators report of a classification of the test split."""

from __future__ import annotations

from torch import Tensor

from sslkit.api import Evaluation, ImageScores


def at_layer(name: str, layer: int) -> str:
    """The name of a metric of features that come from a layer of the projection head."""
    return f"{name}_projector_{layer}" if layer else name


def classified(correct: Tensor, labels: Tensor, layer: int = 0) -> Evaluation:
    """`top1` and `mean_per_class`, the accuracy within each class averaged over the classes that
    occur, with the scores of the images. correct: (M,) bool, or the probability of being right
    where ties are broken at random; labels: (M,) int64."""
    values, classes = correct.cpu().double(), labels.cpu()
    weights = 1.0 / classes.bincount().clamp_min(1)[classes].double()
    scores = {"top1": ImageScores(values), "mean_per_class": ImageScores(values, weights)}
    metrics = {
        "top1": float(values.mean()),
        "mean_per_class": float((weights * values).sum() / weights.sum()),
    }
    return Evaluation(
        {at_layer(name, layer): value for name, value in metrics.items()},
        per_image={at_layer(name, layer): value for name, value in scores.items()},
    )
