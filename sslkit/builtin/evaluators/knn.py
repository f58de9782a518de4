"""Weighted nearest neighbours on frozen features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import Evaluation, EvaluatorConfig, FeatureEvaluator, FeatureInput, RunFacts
from sslkit.nn.classification import Vote, knn_correct

from .classification import classified


class KNN(FeatureEvaluator):
    """Classifies each test image by the weighted vote of its nearest training images in cosine
    similarity (Wu et al. 2018, arXiv:1805.01978). The bank is the whole training split, both
    splits seen through the evaluation transform. Needs no training and has no random part: images
    that are as similar as the last neighbour share the places that are left, each with a part of a
    vote, and t classes with equal votes are each right once in t times.

    Metrics: `top1`, and `mean_per_class`, which weighs every class alike; at a layer of the
    projection head the names end in `_projector_<layer>`."""

    class Config(EvaluatorConfig):
        k: PositiveInt = 200
        """Neighbours that vote. 200 is usual for CIFAR and ImageNet; take 20 or fewer for small
        data: it should stay well below the number of images per class."""
        temperature: PositiveFloat = 0.1
        """A neighbour's weight is exp(similarity / temperature). Wu et al. print 0.07; their
        code, MoCo's and most CIFAR tables use 0.1."""
        layer: NonNegativeInt = 0
        """0: the features of the encoder; k: the output of layer k of the projection head. Raw
        pixels are then no baseline."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projection_layer = config.layer
        if config.layer:
            self.baselines = ("untrained",)

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        bank = facts.num_labelled
        if facts.num_classes is not None and config.k > bank:
            yield (
                "k",
                f"k {config.k} is above the bank of {bank} labelled training {facts.sample.noun}s; "
                f"take at most {bank}",
            )

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        each = facts.num_images // facts.num_classes if facts.num_classes else 0
        least, noun = min(facts.class_sizes, default=each), facts.sample.noun
        if least and config.k > least:
            way = f"take well below {least}" if least > 2 else f"take 1, or more {noun}s"
            yield (
                "k",
                f"{config.k} neighbours are more than the {least} {noun}{'s' * (least > 1)} of the "
                f"smallest class, so that other classes must vote; {way}",
            )

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank = given.projected(self.config.layer).bank
        correct = knn_correct(
            bank.train,
            bank.train_labels,
            bank.test,
            bank.test_labels,
            Vote(self.config.k, self.config.temperature, bank.num_classes),
            device=bank.compute_device,
        )
        found = classified(correct, bank.test_labels, self.config.layer)
        return replace(found, notes=list(self._notes(bank.train_labels, given.noun)))

    def _notes(self, labels: Tensor, noun: str) -> Iterator[str]:
        k, sizes = self.config.k, labels.bincount()
        if k > len(labels):
            yield f"k {k} is above the bank of {len(labels)} labelled {noun}s: all of them voted"
        elif small := int(((sizes > 0) & (sizes < k)).sum()):
            least = int(sizes[sizes > 0].min())
            yield (
                f"k {k} is more than the training {noun}s of {small} of {int((sizes > 0).sum())} "
                f"classes (the smallest has {least}): other classes must vote"
            )
