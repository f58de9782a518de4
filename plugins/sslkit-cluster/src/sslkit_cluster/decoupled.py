"""Decoupled contrastive learning (DCL): NT-Xent whose denominator leaves the positive out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import (
    Bounds,
    ComponentConfig,
    Loss,
    LossInput,
    RunFacts,
    ScheduledNumber,
    scheduled,
)
from sslkit.nn.functional import (
    DEFAULT_CHUNK_ELEMENTS,
    check_pair,
    contrastive_accuracy_and_entropy,
    normalize,
    self_log_partition,
)
from sslkit.nn.numerics import without_autocast

Temperature = Annotated[ScheduledNumber, Bounds(gt=0.0)]


def dcl(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    sigma: float | None = None,
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
) -> Tensor:
    """DCL: the mean over 2 B anchors of -w s_p + log sum_k exp s_k, where s are cosines over
    `temperature`, p is the image's other view, and k are both views of all other images.

    z_a, z_b: (B, D) embeddings of two views, unnormalised; row i of each belongs to image i. It is
    NT-Xent without the positive in the denominator, and so without a least value of 0:
    -1 / temperature + ln(2 B - 2) where views agree and images are orthogonal. w is 1, or with
    `sigma` (DCLW) 2 - B softmax_i(cos_i / sigma) over the cosines of the positives: mean 1, less
    for images whose views agree already, and without gradient. Computed in float32 (float64
    stays). Memory: O(`chunk_elements` + B D).

    Raises ValueError for shapes that differ or are not (B, D), B < 2, temperature <= 0, sigma <= 0,
    or chunk_elements < 1. Source: Yeh et al. 2022, arXiv 2110.06848, equations 5 and 6.
    """
    check_pair(z_a, z_b, temperature, chunk_elements=chunk_elements)
    if sigma is not None and not sigma > 0.0:
        raise ValueError(f"sigma must be above 0, not {sigma}")
    batch = len(z_a)
    with without_autocast(z_a):
        first, second = normalize(z_a), normalize(z_b)
        cosine = (first * second).sum(dim=1)
        own_image = (-batch, 0, batch)  # diagonals of the 2 B x 2 B similarities
        others = self_log_partition(
            torch.cat([first, second]), temperature, own_image, chunk_elements
        )
        positive = cosine / temperature
        if sigma is not None:
            positive = positive * (2.0 - batch * (cosine.detach() / sigma).softmax(dim=0))
        return others.mean() - positive.mean()


class DCL(Loss):
    """Decoupled contrastive loss: `nt_xent` without the positive in its denominator, so that an
    image whose views agree goes on learning in small batches. It can be negative.

    With more than two views: the mean over all pairs of views. See `dcl`.
    Source: Yeh et al. 2022, arXiv 2110.06848.
    """

    class Config(ComponentConfig):
        temperature: Temperature = scheduled(0.1)
        """Softmax temperature."""
        weighted: bool = False
        """True: DCLW, which weighs positives by how little the views of an image agree yet."""
        sigma: PositiveFloat = 0.5
        """Width of these weights: the smaller, the more they differ. Without effect unless
        `weighted` is true."""
        chunk_elements: PositiveInt = DEFAULT_CHUNK_ELEMENTS
        """Similarities held in memory at a time. A batch of M embeddings has M²; fewer at a time
        need less memory and more, smaller steps. Changes the loss by rounding only."""

    config: Config

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"negatives per anchor": 2 * (facts.batch_size - 1)}

    def forward(self, inputs: LossInput) -> Tensor:
        config, views = self.config, inputs.views
        if len(views) < 2:
            raise ValueError(f"a contrastive loss needs at least 2 views, not {len(views)}")
        temperature = config.temperature.at(inputs.progress)
        sigma = config.sigma if config.weighted else None
        losses = [
            dcl(a, b, temperature, sigma=sigma, chunk_elements=config.chunk_elements)
            for a, b in combinations(views, 2)
        ]
        return torch.stack(losses).mean()

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        first, second, *_ = inputs.views
        found = contrastive_accuracy_and_entropy(
            first,
            second,
            temperature=self.config.temperature.at(inputs.progress),
            both_views=True,
            chunk_elements=self.config.chunk_elements,
        )
        return {f"contrastive_{name}": value for name, value in found._asdict().items()}
