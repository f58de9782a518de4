"""How well clusters of features agree with classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from sslkit.api import (
    Evaluation,
    EvaluatorConfig,
    FeatureBank,
    FeatureEvaluator,
    FeatureInput,
    ImageScores,
    RunFacts,
)
from sslkit.nn.clustering import (
    adjusted_rand_index,
    contingency,
    kmeans,
    matched_classes,
    nearest_centres,
    normalized_mutual_information,
)
from sslkit.randomness import SampleRandom, random_subset

_BLOCK_ELEMENTS = 1 << 26
"""Features normalised at once (256 MiB of float32)."""


class Clustering(FeatureEvaluator):
    """k-means on L2-normalised features with as many clusters as there are classes, counting those
    that occur in either split and not names that no image has. The clusters are made from the
    training split and no label; the images of the test split go to the nearest centre, and their
    labels then say how well clusters and classes agree. Deterministic by the seed; every subject
    gets the same draws.

    Metrics, each the mean over the restarts, which are kept for intervals: `nmi`, the normalised
    mutual information (arithmetic mean of the entropies), 0 to 1; `ari`, the adjusted Rand index,
    about 0 by chance; `top1`, the accuracy where each cluster stands for one class in the best way
    (Hungarian matching on the test labels: with shuffled labels it is somewhat above
    1 / classes)."""

    class Config(EvaluatorConfig):
        restarts: Annotated[int, Field(ge=2)] = 5
        """Independent starts (k-means++). None is picked: metrics are means over them."""
        num_images: PositiveInt = 50_000
        """Training images that the clusters are made from, chosen by the seed; all where there are
        fewer. It bounds time and memory."""
        max_iterations: PositiveInt = 100
        """Upper bound on the iterations of each restart; it ends earlier once no image changes its
        cluster."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        classes = facts.classes_present
        if classes and config.num_images < classes:
            yield (
                "num_images",
                f"{config.num_images} {facts.sample.noun}s cannot make {classes} clusters, one for "
                f"each class; take at least {classes}",
            )

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank, config = given.bank, self.config
        k = int((torch.cat([bank.train_labels, bank.test_labels]).bincount() > 0).sum())
        if k < 2:
            return Evaluation(skipped=f"needs two classes, there is {k}")
        rows = random_subset(given.seed, "clustering", len(bank.train), config.num_images)
        if len(rows) < k:
            return Evaluation(
                skipped=f"{len(rows)} training {given.noun}s cannot make {k} clusters"
            )
        features = bank.train[rows.to(bank.train.device)].to(bank.compute_device)
        features = F.normalize(features, dim=1)
        draws: dict[str, list[float]] = {"nmi": [], "ari": [], "top1": []}
        right: list[Tensor] = []
        for restart in range(config.restarts):
            uniform = _uniform(k, given.seed, restart)
            found = kmeans(features, uniform, max_iterations=config.max_iterations)
            clusters = _clusters(bank, found.centres)
            table = contingency(bank.test_labels, clusters, bank.num_classes, k)
            right.append(matched_classes(table)[clusters] == bank.test_labels.cpu())
            draws["nmi"].append(normalized_mutual_information(table))
            draws["ari"].append(adjusted_rand_index(table))
            draws["top1"].append(float(right[-1].double().mean()))
        images = {"top1": ImageScores(torch.stack(right).double().mean(dim=0))}
        means = {name: sum(values) / len(values) for name, values in draws.items()}
        return Evaluation(means, draws, images)


def _uniform(k: int, seed: int, restart: int) -> Tensor:
    """(k,) float64 in [0, 1)."""
    words = SampleRandom(seed, "clustering", restart, torch.arange(k)).bits("starts", 1)
    return words[:, 0].double() * 2.0**-32


def _clusters(bank: FeatureBank, centres: Tensor) -> Tensor:
    """(M,) int64 on the CPU: the cluster of each test image."""
    rows = max(1, _BLOCK_ELEMENTS // bank.test.shape[1])
    return torch.cat(
        [
            nearest_centres(F.normalize(part.to(centres.device), dim=1), centres)[0].cpu()
            for part in torch.split(bank.test, rows)
        ]
    )
