"""The axes of the Hessian that classifiers are searched along."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslkit.nn.penalty_search import Curvature, LabelledRows, feature_curvature, fit_penalties

CLASSES = 3


def labelled(*blocks: Tensor) -> LabelledRows:
    rows = sum(len(block) for block in blocks)
    pairs = [(block, torch.arange(len(block)) % CLASSES) for block in blocks]
    return LabelledRows(lambda: pairs, rows, CLASSES)


def of_all(x: Tensor) -> Curvature:
    wide = x.double()
    return Curvature.of(wide.T @ wide, len(x), CLASSES, x.device).without_flat()


def hessian(curvature: Curvature) -> Tensor:
    assert curvature.axes is not None
    axes = curvature.axes.double()
    return (axes * curvature.values.double()) @ axes.T


@pytest.mark.parametrize("rows", [1, 12, 40])
def test_fewer_rows_than_features_have_the_curvature_of_their_covariance(rows: int) -> None:
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(rows))
    x[:, :3] *= 50.0
    found, expected = feature_curvature(labelled(x[:5], x[5:])), of_all(x)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=0.0)
    covariance = x.double().T @ x.double() / (rows * CLASSES)
    torch.testing.assert_close(hessian(found), covariance, rtol=1e-5, atol=1e-6)
    assert found.axes is not None
    identity = torch.eye(found.axes.shape[1])
    torch.testing.assert_close(found.axes.T @ found.axes, identity, rtol=0.0, atol=1e-5)


def test_rows_that_repeat_others_add_no_axis() -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    assert len(feature_curvature(labelled(x)).values) == len(of_all(x).values) == 6


@pytest.mark.parametrize("rows", [4, 80])
def test_features_that_are_all_0_are_equally_likely_of_any_class(rows: int) -> None:
    labels = torch.arange(rows) % 4
    data = LabelledRows(lambda: [(torch.zeros(rows, 40), labels)], rows, 4)
    found = fit_penalties(data, l2=[1e-3])
    assert found.weight.abs().max() == 0.0
    torch.testing.assert_close(found.bias.softmax(-1), torch.full((1, 4), 0.25))
