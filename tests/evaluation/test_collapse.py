from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.api import FeatureInput
from sslkit.builtin.evaluators.collapse import Collapse
from tests.evaluation.features import Pairs, unlabelled


def subject(features: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> FeatureInput:
    bank = unlabelled(features, features.new_empty(0, features.shape[1]))
    return FeatureInput("trained", bank, 0, views=Pairs(*pairs or (features, features)))


def test_spread_features_score_as_healthy() -> None:
    features = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    found = Collapse(Collapse.Config()).evaluate(subject(features, (features, 2.0 * features)))
    assert set(found.metrics) == {
        "collapse/std", "collapse/rankme", "collapse/uniformity", "collapse/alignment"
    }  # fmt: skip
    assert found.metrics["collapse/std"] == pytest.approx(1 / math.sqrt(32), rel=0.02)
    assert 30 < found.metrics["collapse/rankme"] < 32
    assert found.metrics["collapse/uniformity"] < -3.3
    assert found.metrics["collapse/alignment"] == pytest.approx(0.0, abs=1e-9)
    found.figures["spectrum"].canvas.draw()


def test_collapsed_features_show_it() -> None:
    found = Collapse(Collapse.Config()).evaluate(subject(torch.ones(50, 8)))
    assert found.metrics["collapse/std"] == pytest.approx(0.0, abs=1e-6)
    assert found.metrics["collapse/rankme"] == pytest.approx(1.0, abs=1e-3)
    assert found.metrics["collapse/uniformity"] == pytest.approx(0.0, abs=1e-6)
    found.figures["spectrum"].canvas.draw()


@pytest.mark.parametrize("images", [12, 32, 200])
def test_the_spectrum_of_healthy_features_has_no_cliff(images: int) -> None:
    """Centring takes one rank of features that are no more than their width."""
    features = torch.randn(images, 32, generator=torch.Generator().manual_seed(0))
    figure = Collapse(Collapse.Config()).evaluate(subject(features)).figures["spectrum"]
    (line,) = figure.axes[0].lines
    assert len(line.get_ydata()) == min(images - 1, 32)
    assert min(line.get_ydata()) > 1e-3 * max(line.get_ydata())


def test_the_test_split_is_preferred_and_the_subset_is_fixed() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = unlabelled(torch.ones(10, 8), torch.randn(300, 8, generator=generator))
    views = Pairs(bank.test, bank.test)
    protocol = Collapse(Collapse.Config(num_images=100))
    first = protocol.evaluate(FeatureInput("trained", bank, 0, views=views)).metrics
    assert first["collapse/rankme"] > 7
    assert protocol.evaluate(FeatureInput("trained", bank, 0, views=views)).metrics == first
    assert protocol.evaluate(FeatureInput("trained", bank, 1, views=views)).metrics != first


def test_one_image_is_skipped() -> None:
    found = Collapse(Collapse.Config()).evaluate(subject(torch.ones(1, 8)))
    assert found.skipped == "needs two images, there is 1"
