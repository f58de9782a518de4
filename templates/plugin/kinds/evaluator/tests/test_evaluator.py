"""Against scikit-learn, and on cases that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestCentroid  # type: ignore[import-untyped]
from sslkit.api import Evaluation, FeatureBank, FeatureInput
from torch import Tensor

from sslkit_newname.evaluator import NewName, nearest_class


def evaluation(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> Evaluation:
    bank = FeatureBank(train, test, labels, test_labels)
    evaluator = NewName(NewName.Config())
    return evaluator.evaluate(FeatureInput("trained", bank, seed=0))


def test_euclidean_is_that_of_scikit_learn() -> None:
    train, test = torch.randn(60, 5), torch.randn(40, 5)
    labels = torch.arange(60) % 4
    expected = NearestCentroid().fit(train.numpy(), labels.numpy()).predict(test.numpy())
    assert nearest_class(train, labels, test, "euclidean").tolist() == expected.tolist()


def test_cosine_does_not_see_lengths() -> None:
    train, labels = torch.randn(20, 5), torch.arange(20) % 3
    test, scales = torch.randn(10, 5), torch.rand(10, 1) + 0.1
    found = nearest_class(train, labels, test, "cosine")
    assert torch.equal(nearest_class(train, labels, scales * test, "cosine"), found)


def test_classes_of_different_size_count_alike_in_the_mean_over_classes() -> None:
    train, labels = torch.eye(2), torch.tensor([0, 1])
    test = torch.tensor([[1.0, 0.0]] * 4)  # all are taken for class 0
    found = evaluation(train, labels, test, torch.tensor([0, 0, 0, 1]))
    assert found.metrics["top1"] == pytest.approx(3 / 4)
    assert found.metrics["top1_per_class"] == pytest.approx(1 / 2)


def test_scores_of_images_have_the_metric_as_their_mean() -> None:
    train, labels = torch.randn(30, 4), torch.arange(30) % 3
    test, test_labels = torch.randn(20, 4), torch.arange(20) % 3
    found = evaluation(train, labels, test, test_labels)
    for name, scores in found.per_image.items():
        weights = torch.ones(20) if scores.weights is None else scores.weights
        mean = (scores.values * weights).sum() / weights.sum()
        assert mean.item() == pytest.approx(found.metrics[name])


def test_a_class_without_training_images_is_never_found() -> None:
    train, labels = torch.eye(2), torch.tensor([0, 2])
    assert 1 not in nearest_class(train, labels, torch.rand(9, 2), "cosine")
