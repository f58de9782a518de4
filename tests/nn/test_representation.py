"""RankMe, alignment, uniformity and feature std against closed forms and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sslkit.nn import representation
from sslkit.nn.functional import alignment, feature_std, rankme, uniformity


def normal(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_identity_like_features_is_their_rank(rank: int) -> None:
    features = torch.zeros(8 * rank, 8)
    features[torch.arange(8 * rank), torch.arange(8 * rank) % rank] = 1.0
    assert rankme(features).item() == pytest.approx(rank, abs=1e-4)


@pytest.mark.parametrize(("count", "dim"), [(40, 7), (7, 40), (5000, 3)])
def test_rankme_equals_the_singular_value_form(count: int, dim: int) -> None:
    features = normal(count, dim) * torch.logspace(0, -3, dim)
    sigma = np.linalg.svd(features.double().numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    expected = math.exp(-(p * np.log(p)).sum())
    assert rankme(features).item() == pytest.approx(expected, rel=1e-6)


def test_rankme_is_not_centred() -> None:
    assert rankme(torch.full((50, 4), 2.0)).item() == pytest.approx(1.0, abs=1e-4)


def test_rankme_of_random_features_is_slightly_below_the_width() -> None:
    assert 15.5 < rankme(normal(4000, 16)).item() < 16.0


def test_degenerate_input() -> None:
    zeros = torch.zeros(6, 4)
    assert rankme(zeros).item() == 0.0
    assert alignment(zeros, zeros).item() == 0.0
    assert uniformity(zeros).item() == 0.0
    assert feature_std(zeros).item() == 0.0
    broken = torch.full((6, 4), math.nan)
    for value in (rankme(broken), alignment(broken, broken), uniformity(broken)):
        assert value.isnan()


def test_alignment() -> None:
    a, b = torch.eye(2), torch.eye(2).flip(0)
    assert alignment(a, 5 * a).item() == pytest.approx(0.0, abs=1e-12)
    assert alignment(a, b).item() == pytest.approx(2.0)
    assert alignment(a, -a).item() == pytest.approx(4.0)
    assert alignment(a, -a, alpha=1.0).item() == pytest.approx(2.0)


def test_uniformity_closed_forms() -> None:
    assert uniformity(torch.ones(9, 3)).item() == pytest.approx(0.0, abs=1e-9)
    antipodal = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert uniformity(antipodal).item() == pytest.approx(-8.0, rel=1e-9)
    assert uniformity(normal(2000, 512)).item() == pytest.approx(-4.0, abs=0.05)


def test_uniformity_in_blocks_equals_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    features = normal(23, 5)
    expected = torch.pdist(torch.nn.functional.normalize(features.double())).square()
    expected = expected.mul(-2).exp().mean().log()
    monkeypatch.setattr(representation, "_ROWS", 7)
    assert uniformity(features).item() == pytest.approx(expected.item(), rel=1e-9)
    assert rankme(features).item() == pytest.approx(rankme(features.flip(0)).item(), rel=1e-9)


def test_feature_std() -> None:
    assert feature_std(torch.ones(10, 4)).item() == pytest.approx(0.0, abs=1e-9)
    assert feature_std(normal(4000, 64)).item() == pytest.approx(1 / 8, rel=0.01)
    features = normal(12, 5).double()
    unit = features / features.norm(dim=1, keepdim=True)
    assert feature_std(features).item() == pytest.approx(unit.std(dim=0).mean().item())


def test_half_precision_features_are_measured_in_float64() -> None:
    features = normal(200, 16).to(torch.bfloat16)
    assert rankme(features).item() == pytest.approx(rankme(features.double()).item(), rel=1e-12)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"N >= 2, not \(1, 4\)"):
        uniformity(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        rankme(torch.ones(4))
    with pytest.raises(ValueError, match="pairs must match"):
        alignment(torch.ones(3, 2), torch.ones(4, 2))
