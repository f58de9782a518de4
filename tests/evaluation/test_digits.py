"""The evaluators on real images: scikit-learn's handwritten digits at 32 pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslkit.builtin.evaluators.few_label import FewLabel
from sslkit.builtin.evaluators.knn import KNN
from sslkit.builtin.evaluators.linear import Linear
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.suite import EvaluationSuite
from tests.evaluation.tensor_images import TensorImages


def test_baselines_on_digits_are_where_they_are_known_to_be() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16.0
    images = F.interpolate(images, size=32, mode="bilinear", antialias=True)
    labels = torch.tensor(digits.target)
    train, test = torch.arange(1437), torch.arange(1437, 1797)  # other writers in the test split
    torch.manual_seed(0)
    untrained = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    suite = EvaluationSuite(
        named_evaluators(
            [
                ("knn", KNN(KNN.Config(k=20))),
                ("linear", Linear(Linear.Config(l2=(0.1, 0.01)))),
                ("few_label", FewLabel(FewLabel.Config(labels_per_class=(5,), draws=10))),
            ]
        ),
        TensorImages(images[train], images[test], labels[train], labels[test]),
    )
    metrics = suite.baselines(untrained).metrics
    assert metrics["eval/knn/top1_pixels"] > 0.93
    assert metrics["eval/linear/top1_pixels"] > 0.88
    assert 0.75 < metrics["eval/few_label/top1_5_pixels"] < 0.9
    assert metrics["eval/knn/top1_untrained"] > 0.8
    assert 0.5 < metrics["eval/few_label/top1_5_untrained"] < 0.85
