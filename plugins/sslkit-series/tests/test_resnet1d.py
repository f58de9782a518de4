"""The backbone `resnet1d`."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from sslkit_series.resnet1d import ResNet1d


def network(**fields: object) -> ResNet1d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet1d(ResNet1d.Config(**fields), shape=(2, 64))


def test_shapes() -> None:
    for blocks, features in (((1,), 8), ((1, 2), 16), ((1, 1, 1), 32)):
        found = network(width=8, blocks=blocks)
        assert found.num_features == features
        for length in (1, 64, 97):
            assert found(torch.randn(3, 2, length)).shape == (3, features)


def test_parameters_are_those_of_the_layers() -> None:
    """Stem 2*4*3; block 1: 4*4*3 twice, shortcut 4*4; block 2: 4*8*3, 8*8*3, 4*8; two numbers a
    channel of each BatchNorm."""
    convolutions = 24 + 48 + 48 + 16 + 96 + 192 + 32
    norms = 2 * (4 + 4 + 4 + 4 + 8 + 8 + 8)
    found = network(width=4, blocks=(1, 1), kernel_size=3)
    assert sum(p.numel() for p in found.parameters()) == convolutions + norms


def test_features_do_not_depend_on_the_unit_of_the_series() -> None:
    found, series = network(width=8), torch.randn(16, 2, 64)
    torch.testing.assert_close(found(1000 * series), found(series), rtol=1e-3, atol=1e-3)


def test_features_are_a_mean_over_time() -> None:
    """Of a series that repeats, features are those of any shift by its period."""
    found = network(width=8).eval()
    series = torch.randn(4, 2, 8).repeat(1, 1, 64)
    shifted = series.roll(8, dims=2)
    torch.testing.assert_close(found(series), found(shifted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"kernel_size": 4}, {"blocks": []}, {"width": 0}])
def test_bad_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResNet1d.Config(**fields)
