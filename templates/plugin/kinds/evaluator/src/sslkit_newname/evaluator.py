"""Classification by the nearest class mean.

Shapes: N training images, M test images, F features, K classes that have training images.
"""

from __future__ import annotations

from typing import Literal

import torch
from sslkit.api import Evaluation, EvaluatorConfig, FeatureEvaluator, FeatureInput, ImageScores
from sslkit.nn.functional import normalize
from torch import Tensor

Distance = Literal["cosine", "euclidean"]


def nearest_class(train: Tensor, labels: Tensor, test: Tensor, distance: Distance) -> Tensor:
    """(M,) the class whose mean is nearest to each row of test (M, F).

    train: (N, F), labels: (N,) any whole numbers. Cosine: rows and means have unit length."""
    if distance == "cosine":
        train, test = normalize(train), normalize(test)
    classes: Tensor = labels.unique()  # (K,): a class without training images has no mean
    means = torch.stack([train[labels == each].mean(dim=0) for each in classes])
    if distance == "cosine":
        means = normalize(means)
    return classes[torch.cdist(test, means).argmin(dim=1)]


class NewName(FeatureEvaluator):
    """Accuracy of the nearest class mean: `top1` over images, `top1_per_class` over classes."""

    class Config(EvaluatorConfig):
        distance: Distance = "cosine"
        """What is near: `cosine` looks at directions alone, `euclidean` at lengths too."""

    config: Config

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank = given.bank
        found = nearest_class(bank.train, bank.train_labels, bank.test, self.config.distance)
        right = (found == bank.test_labels).float()  # (M,)
        # Each class counts alike: an image weighs 1 / (test images of its class).
        sizes = torch.bincount(bank.test_labels)[bank.test_labels]
        weights = 1.0 / sizes
        per_class = (weights * right).sum() / weights.sum()
        return Evaluation(
            metrics={"top1": right.mean().item(), "top1_per_class": per_class.item()},
            per_image={
                "top1": ImageScores(right),
                "top1_per_class": ImageScores(right, weights),
            },
        )
