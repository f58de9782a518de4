from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.api import FeatureBank, Subject
from sslkit.builtin.evaluators.collapse import Collapse


def subject(features: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> Subject:
    bank = FeatureBank(features, features.new_empty(0, features.shape[1]))
    return Subject("trained", bank, 0, None, None if pairs is None else lambda num: pairs)


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
    assert "collapse/alignment" not in found.metrics
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
    bank = FeatureBank(torch.ones(10, 8), torch.randn(300, 8, generator=generator))
    protocol = Collapse(Collapse.Config(num_images=100))
    first = protocol.evaluate(Subject("trained", bank, 0)).metrics
    assert first["collapse/rankme"] > 7
    assert protocol.evaluate(Subject("trained", bank, 0)).metrics == first
    assert protocol.evaluate(Subject("trained", bank, 1)).metrics != first


def test_one_image_is_skipped() -> None:
    found = Collapse(Collapse.Config()).evaluate(subject(torch.ones(1, 8)))
    assert found.skipped == "needs two images, there is 1"
