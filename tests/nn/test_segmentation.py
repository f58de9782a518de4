"""Scores of segmentations by hand, and the classifier of positions against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.api import IGNORED_PIXEL
from sslkit.nn.logistic_regression import fit_logistic_regression
from sslkit.nn.segmentation import (
    class_fractions,
    fit_class_fractions,
    intersection_over_union,
    mean_intersection_over_union,
    pixel_accuracy,
    pixel_confusion,
    soft_confusion,
)


def test_scores_by_hand() -> None:
    target = torch.tensor([[0, 0, 0, 1], [0, 1, 1, IGNORED_PIXEL]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 2]])
    table = pixel_confusion(target, predicted, 4)
    assert table.tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    ratios = intersection_over_union(table)
    assert ratios[:2].tolist() == [3 / 5, 2 / 4]
    assert ratios[2:].isnan().all()  # neither there nor predicted: the ignored pixel counts nowhere
    assert mean_intersection_over_union(table) == pytest.approx(0.55)
    assert pixel_accuracy(table) == pytest.approx(5 / 7)


def test_a_class_that_is_only_predicted_counts_as_0() -> None:
    table = pixel_confusion(torch.tensor([0, 0]), torch.tensor([0, 1]), 3)
    assert mean_intersection_over_union(table) == pytest.approx((0.5 + 0.0) / 2)


def test_scores_without_pixels_are_undefined() -> None:
    table = pixel_confusion(torch.tensor([IGNORED_PIXEL]), torch.tensor([0]), 2)
    assert math.isnan(mean_intersection_over_union(table))
    assert math.isnan(pixel_accuracy(table))


def test_fractions_by_hand() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 2, 1, IGNORED_PIXEL]], dtype=torch.uint8)
    fractions = class_fractions(mask, (1, 2), 3)
    assert fractions.tolist() == [[0.75, 0.0, 0.25], [0.0, 0.75, 0.0]]


def test_fractions_agree_with_counts_on_any_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (13, 22), generator=generator).to(torch.uint8)
    whole = class_fractions(mask, (1, 1), 4)[0]
    assert torch.allclose(whole, mask.flatten().bincount(minlength=4) / mask.numel())
    assert torch.allclose(class_fractions(mask, (5, 7), 4).sum(dim=1), torch.ones(35))


def test_soft_confusion_of_whole_positions_is_the_confusion_of_their_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (50,), generator=generator)
    predicted = torch.randint(0, 3, (50,), generator=generator)
    table = soft_confusion(F.one_hot(target, 3).float(), predicted)
    assert torch.equal(table, pixel_confusion(target, predicted, 3).double())


def positions(num: int = 400, width: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, width, generator=generator)
    logits = x @ torch.randn(width, classes, generator=generator)
    t = F.softmax(logits + torch.randn(num, classes, generator=generator), dim=1)
    return x, t * torch.rand(num, 1, generator=generator)  # only a part of each is known


def test_the_fit_is_the_minimum_of_the_cross_entropy_of_pixels() -> None:
    x, t = positions()
    l2 = [0.1, 1e-3]
    found = fit_class_fractions(lambda: [(x[:150], t[:150]), (x[150:], t[150:])], l2=l2,
                                tolerance=1e-8)  # fmt: skip
    for problem, strength in enumerate(l2):
        weight = found.weight[problem].clone().requires_grad_()
        bias = found.bias[problem].clone().requires_grad_()
        log_p = F.log_softmax(x @ weight.T + bias, dim=1)
        loss = -(t * log_p).sum() / t.sum() + 0.5 * strength * weight.square().sum()
        loss.backward()
        assert weight.grad is not None
        assert bias.grad is not None
        assert float(weight.grad.abs().max()) < 5e-6
        assert float(bias.grad.abs().max()) < 5e-6


def test_whole_classes_are_logistic_regression() -> None:
    x, t = positions()
    labels = t.argmax(dim=1)
    whole = F.one_hot(labels, 3).float()
    found = fit_class_fractions(lambda: [(x, whole)], l2=[0.01], tolerance=1e-8)
    expected = fit_logistic_regression(x[None], labels[None], 3, l2=0.01, tolerance=1e-7)
    assert torch.allclose(found.weight, expected.weight, atol=1e-3)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    x, t = positions()
    cold = fit_class_fractions(lambda: [(x, t)], l2=[0.01], tolerance=1e-8)
    warm = fit_class_fractions(lambda: [(x, t)], l2=[0.01], start=cold, tolerance=1e-8)
    assert warm.iterations < cold.iterations
    assert torch.allclose(warm.weight, cold.weight, atol=1e-4)


def test_positions_without_known_pixels_cannot_be_fitted() -> None:
    x, t = positions()
    with pytest.raises(ValueError, match="no position has a pixel of a known class"):
        fit_class_fractions(lambda: [(x, t * 0.0)], l2=[0.1])
