"""Alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242).

Shapes: B images, V views of each, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Annotated

import torch
from pydantic import PositiveFloat
from sslkit.api import (
    Bounds,
    ComponentConfig,
    Loss,
    LossInput,
    RunFacts,
    ScheduledNumber,
    scheduled,
)
from sslkit.nn.functional import normalize
from torch import Tensor


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared distance of rows i of a and b, (B, D) of unit length: 0 to 4."""
    return (a - b).square().sum(dim=1).mean()


def uniformity(z: Tensor, t: float) -> Tensor:
    """log of the mean of exp(-t d^2) over pairs of rows of z, (B, D) of unit length: -4 t to 0."""
    potentials = -t * torch.pdist(z).square()  # (B (B - 1) / 2,)
    return potentials.logsumexp(dim=0) - math.log(len(potentials))


class NewName(Loss):
    """Alignment + weight * uniformity: views of an image attract, all images spread.

    0 where all embeddings are equal, -2 t * weight where images are orthogonal and their views
    equal. With more than two views: the mean over pairs of views, and over views.
    """

    class Config(ComponentConfig):
        weight: Annotated[ScheduledNumber, Bounds(ge=0.0)] = scheduled(1.0)
        """Weight of uniformity: a number, or a schedule."""
        t: PositiveFloat = 2.0
        """Sharpness of the potential: with a large one, near images alone repel each other."""

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) < 2:
            yield "", f"needs 2 views or more, and the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "needs train.batch_size >= 2: it compares images"

    def forward(self, inputs: LossInput) -> Tensor:
        parts = self._parts(inputs)
        return parts["alignment"] + self.config.weight.at(inputs.progress) * parts["uniformity"]

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        return self._parts(inputs)

    def _parts(self, inputs: LossInput) -> dict[str, Tensor]:
        views = [normalize(view) for view in inputs.views]  # V of (B, D), float32
        pairs = [alignment(a, b) for a, b in combinations(views, 2)]
        spread = [uniformity(view, self.config.t) for view in views]
        return {
            "alignment": torch.stack(pairs).mean(),
            "uniformity": torch.stack(spread).mean(),
        }
