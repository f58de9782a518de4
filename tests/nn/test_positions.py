"""Sine-cosine positions, and putting them into a network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sslkit.nn.positions import find_transformer, fix_positions, sine_cosine_positions


def test_positions() -> None:
    positions = sine_cosine_positions(3, 5, 8)
    assert positions.shape == (15, 8)
    row, column = 2, 3  # token 13; frequencies 1 and 1 / 100
    by_row = [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
    by_column = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100)]
    torch.testing.assert_close(positions[13], torch.tensor(by_row + by_column))
    swapped = sine_cosine_positions(3, 5, 8, column_first=True)
    torch.testing.assert_close(swapped[13], torch.tensor(by_column + by_row))
    assert len(positions.unique(dim=0)) == 15
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        sine_cosine_positions(2, 2, 6)


@pytest.mark.parametrize("prefix", [0, 3])
def test_class_and_register_tokens_get_none(prefix: int) -> None:
    network: Any = nn.Module()
    network.patch_embed = nn.Module()
    network.patch_embed.grid_size = (2, 3)
    network.pos_embed = nn.Parameter(torch.randn(1, prefix + 6, 8))
    fix_positions(network, column_first=True)
    assert not network.pos_embed.requires_grad
    assert not network.pos_embed[0, :prefix].any()
    assert torch.equal(
        network.pos_embed[0, prefix:], sine_cosine_positions(2, 3, 8, column_first=True)
    )


def test_a_network_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="no learned position embedding"):
        fix_positions(nn.Linear(2, 2))


def test_the_transformer_is_found_within_a_network() -> None:
    inner: Any = nn.Module()
    inner.patch_embed = nn.Conv2d(3, 8, 4, 4)
    assert find_transformer(inner) is inner
    assert find_transformer(nn.Sequential(nn.ReLU(), nn.Sequential(inner))) is inner
    other: Any = nn.Linear(2, 2)
    other.patch_embed = None  # as a network without one may have it
    with pytest.raises(ValueError, match=r"no patch embedding \(patch_embed\)"):
        find_transformer(other)
