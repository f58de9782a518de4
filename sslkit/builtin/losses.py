"""Contrastive losses on two or more views: NT-Xent and InfoNCE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated

import torch
from pydantic import PositiveInt
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
    ContrastiveMetrics,
    contrastive_accuracy_and_entropy,
    info_nce,
    nt_xent,
)

Temperature = Annotated[ScheduledNumber, Bounds(gt=0.0)]

_USUAL_TEMPERATURES = (0.02, 2.0)
"""Published ones are 0.05 to 1 (arXiv 2002.05709, table 5; 2006.07733; 2104.02057)."""


class NTXent(Loss):
    """NT-Xent (SimCLR): every view is an anchor, both views hold negatives.

    With more than two views: the mean over all pairs of views. See `sslkit.nn.functional.nt_xent`.
    """

    class Config(ComponentConfig):
        temperature: Temperature = scheduled(0.5)
        """Softmax temperature. 0.5 suits CIFAR, 0.1 ImageNet (arXiv 2002.05709, B.9 and 5.1)."""
        chunk_elements: PositiveInt = DEFAULT_CHUNK_ELEMENTS
        """Similarities held in memory at a time. A batch of M embeddings has M²; fewer at a time
        need less memory and more, smaller steps. Changes the loss by rounding only."""

    config: Config

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        return _odd_temperature(config.temperature.values(facts))

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"negatives per anchor": 2 * (facts.batch_size - 1)}

    def forward(self, inputs: LossInput) -> Tensor:
        config = self.config
        temperature = config.temperature.at(inputs.progress)
        return _mean_over_pairs(
            inputs.views,
            lambda a, b: nt_xent(a, b, temperature, chunk_elements=config.chunk_elements),
        )

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        first, second, *_ = inputs.views
        return _named(
            contrastive_accuracy_and_entropy(
                first,
                second,
                temperature=self.config.temperature.at(inputs.progress),
                both_views=True,
                chunk_elements=self.config.chunk_elements,
            )
        )


class InfoNCE(Loss):
    """InfoNCE: negatives are the other view's embeddings of other images, or `inputs.negatives`
    where the method has them (a queue): then the first view is the query, the second its key.

    With more than two views: the mean over all pairs of views. See
    `sslkit.nn.functional.info_nce`.
    """

    class Config(ComponentConfig):
        temperature: Temperature = scheduled(0.1)
        """Softmax temperature."""
        symmetric: bool = True
        """In-batch negatives: average first to second view and second to first. Does not apply
        to negatives from a queue, where the second view is the key and never the query."""
        chunk_elements: PositiveInt = DEFAULT_CHUNK_ELEMENTS
        """Similarities held in memory at a time. A batch of M embeddings has M²; fewer at a time
        need less memory and more, smaller steps. Changes the loss by rounding only."""

    config: Config

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        return _odd_temperature(config.temperature.values(facts))

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        # Of the batch; a method with a queue states its own number, which goes before this one.
        return {"negatives per anchor": facts.batch_size - 1}

    def forward(self, inputs: LossInput) -> Tensor:
        config, negatives = self.config, inputs.negatives
        symmetric = config.symmetric and negatives is None
        temperature = config.temperature.at(inputs.progress)
        return _mean_over_pairs(
            inputs.views,
            lambda a, b: info_nce(
                a,
                b,
                negatives,
                temperature,
                symmetric=symmetric,
                chunk_elements=config.chunk_elements,
            ),
        )

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        first, second, *_ = inputs.views
        return _named(
            contrastive_accuracy_and_entropy(
                first,
                second,
                inputs.negatives,
                self.config.temperature.at(inputs.progress),
                chunk_elements=self.config.chunk_elements,
            )
        )


def _odd_temperature(temperatures: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Warns of a temperature that is odd at any point of a run. Cosines differ by at most 2, so
    logits by at most 2 / temperature."""
    low, high = _USUAL_TEMPERATURES
    temperature = next((value for value in temperatures if not low <= value <= high), None)
    if temperature is None:
        return
    effect = (
        "only the hardest negative counts, and gradients vanish or overflow"
        if temperature < low
        else f"logits differ by {2.0 / temperature:.2g} at most, so all candidates count alike"
    )
    yield "temperature", f"{temperature:g}: {effect}; published recipes have 0.05 to 1"


def _mean_over_pairs(views: Sequence[Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if len(views) < 2:
        raise ValueError(f"a contrastive loss needs at least 2 views, not {len(views)}")
    return torch.stack([loss(a, b) for a, b in combinations(views, 2)]).mean()


def _named(metrics: ContrastiveMetrics) -> Mapping[str, Tensor]:
    return {
        "contrastive_top1": metrics.top1,
        "contrastive_top5": metrics.top5,
        "contrastive_entropy": metrics.entropy,
    }
