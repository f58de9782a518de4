"""A projection head that treats every image on its own."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveInt
from sslkit.api import ComponentConfig, Head
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + linear(gelu(norm(x))), from (B, width) to (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.change(x)
        return x + changed


class NewName(Head):
    """A linear layer into `hidden_dim`, residual blocks, and a linear layer out of it.

    Without batch statistics: the embedding of an image is the same in any batch.
    """

    class Config(ComponentConfig):
        hidden_dim: PositiveInt = 256
        """Width of the hidden layers."""
        num_blocks: NonNegativeInt = 1
        """Residual blocks between the two linear layers."""
        out_dim: PositiveInt = 128
        """Width of the embedding."""

    def __init__(self, config: Config, *, in_dim: int) -> None:
        super().__init__(config)
        self.out_dim = config.out_dim
        width = config.hidden_dim
        first = nn.Linear(in_dim, width)
        blocks = [ResidualBlock(width) for _ in range(config.num_blocks)]
        last = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, config.out_dim))
        self.layers = nn.Sequential(first, *blocks, last)

    def forward(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(features)  # (B, in_dim) to (B, out_dim)
        return embeddings

    def as_layers(self) -> Sequence[nn.Module]:
        return tuple(self.layers)
