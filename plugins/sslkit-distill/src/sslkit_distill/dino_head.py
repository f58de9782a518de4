"""DINO's head: an MLP to a narrow vector of unit length, and its cosines with prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import ComponentConfig, Head
from sslkit.nn.functional import normalize
from sslkit.nn.numerics import without_autocast


class DINOHead(Head):
    """Linear layers with GELU between them, a bottleneck, and a last layer without bias whose
    weights and inputs are normalised: (B, in_dim) to (B, out_dim) scores in [-1, 1], or in
    [-length, length] of a prototype whose length is trained.

    The last layer works in float32 whatever the precision of training: a score is divided by a
    temperature of a few hundredths. Source: Caron et al. 2021, arXiv 2104.14294, section 3.1, and
    the reference code.
    """

    class Config(ComponentConfig):
        out_dim: PositiveInt = 65536
        """Number of prototypes, which are the rows of the last layer."""
        num_layers: PositiveInt = 3
        """Linear layers of the MLP, the one to the bottleneck included."""
        hidden_dim: PositiveInt = 2048
        """Width of hidden layers."""
        bottleneck_dim: PositiveInt = 256
        """Width of the vector that is compared with the prototypes."""
        batch_norm: bool = False
        """BatchNorm after each hidden layer, for convolutional networks."""
        unit_prototypes: bool = True
        """Keeps the length of every prototype at 1. False trains the lengths: better, and less
        stable, says DINO's code, which recommends it for ViT-S alone. DINOv2's always does."""

    def __init__(self, config: Config, *, in_dim: int) -> None:
        super().__init__(config)
        self.out_dim = config.out_dim
        widths = [in_dim, *[config.hidden_dim] * (config.num_layers - 1)]
        layers: list[nn.Module] = [
            _hidden(width, config.hidden_dim, config.batch_norm) for width in widths[:-1]
        ]
        layers.append(nn.Sequential(_linear(widths[-1], config.bottleneck_dim)))
        layers.append(
            Prototypes(config.bottleneck_dim, config.out_dim, unit=config.unit_prototypes)
        )
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.layers(features)
        return scores

    def as_layers(self) -> Sequence[nn.Module]:
        """The hidden layers, the bottleneck, and the prototypes."""
        return tuple(self.layers)


class Prototypes(nn.Module):
    """The cosines of each row with K prototypes, times the lengths of these, (B, D) to (B, K), in
    float32 (float64 stays)."""

    def __init__(self, in_dim: int, count: int, *, unit: bool) -> None:
        """unit: whether the length of each prototype is 1; otherwise it begins there."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, in_dim))
        """Directions: their own lengths say how fast they turn, and nothing else."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5.0))  # as torch makes a linear layer
        self.lengths = None if unit else nn.Parameter(torch.ones(count, 1))

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            prototypes = normalize(self.weight)
            if self.lengths is not None:
                prototypes = prototypes * self.lengths
            return F.linear(normalize(x), prototypes)


def _hidden(in_dim: int, out_dim: int, batch_norm: bool) -> nn.Sequential:
    norm = [nn.BatchNorm1d(out_dim)] if batch_norm else []
    return nn.Sequential(_linear(in_dim, out_dim), *norm, nn.GELU())


def _linear(in_dim: int, out_dim: int) -> nn.Linear:
    linear = nn.Linear(in_dim, out_dim)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
