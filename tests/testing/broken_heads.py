"""Heads with one fault each, as people make them, and a sound one that they differ from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sslkit.api import ComponentConfig, Head


class Sound(Head):
    """Two layers with BatchNorm between them: nothing is wrong with it."""

    class Config(ComponentConfig):
        out_dim: int = 12
        """Width of what it gives."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        super().__init__(config)
        self.out_dim = config.out_dim
        self.first = nn.Sequential(nn.Linear(in_dim, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.last = nn.Linear(24, config.out_dim)

    def forward(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.last(self.first(features))
        return embeddings

    def as_layers(self) -> Sequence[nn.Module]:
        return self.first, self.last


class HiddenWidth(Sound):
    """States the width of its hidden layer."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        super().__init__(config, in_dim=in_dim)
        self.out_dim = 24


class OfOneWidth(Sound):
    """Takes features of 32 values, whatever it is built for."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        super().__init__(config, in_dim=32)


class Normalised(Sound):
    """Normalises after its last layer, which its layers leave out."""

    def forward(self, features: Tensor) -> Tensor:
        return functional.normalize(super().forward(features), dim=1)


class FromNumpy(Sound):
    """Initialises with numpy."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        super().__init__(config, in_dim=in_dim)
        self.last.weight.data *= float(np.random.rand())  # noqa: NPY002


class OneSeed(Sound):
    """Seeds its weights by itself."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(config, in_dim=in_dim)


class DropoutAlways(Sound):
    """Drops in evaluation too."""

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.dropout(self.first(features), 0.1)
        embeddings: Tensor = self.last(hidden)
        return embeddings

    def as_layers(self) -> Sequence[nn.Module]:
        return (self,)


class Prototypes(Sound):
    """Keeps random prototypes in a list."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        super().__init__(config, in_dim=in_dim)
        self.prototypes = [torch.randn(config.out_dim, config.out_dim)]

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) @ self.prototypes[0]

    def as_layers(self) -> Sequence[nn.Module]:
        return (self,)


class InPlace(Sound):
    """Takes the negative part of its features away where they are."""

    def __init__(self, config: Any, *, in_dim: int) -> None:
        super().__init__(config, in_dim=in_dim)
        self.first = nn.Sequential(nn.ReLU(inplace=True), *self.first)


BROKEN: dict[type[Head], str] = {
    HiddenWidth: "gives-the-stated-width",
    OfOneWidth: "takes-features-of-any-width",
    Normalised: "layers-make-the-head",
    FromNumpy: "no-random-numbers-of-numpy-or-python",
    OneSeed: "untrained-is-random",
    DropoutAlways: "evaluation-repeats",
    Prototypes: "state-is-complete",
    InPlace: "what-it-takes-is-left-alone",
}
"""Class -> the one law that it breaks."""
