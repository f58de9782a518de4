"""Weighted nearest neighbours on frozen features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from sslkit.interfaces import Evaluation, Evaluator, EvaluatorConfig, Facts, Subject
from sslkit.nn.classification import knn_predict, mean_class_accuracy, top1_accuracy

from .linear import at_layer


class KNN(Evaluator):
    """Classifies each test image by the weighted vote of its nearest training images in cosine
    similarity (Wu et al. 2018, arXiv:1805.01978). The bank is the whole training split, both
    splits seen through the evaluation transform. Needs no training and has no random part.

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
        self.pixel_baseline = config.layer == 0

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[tuple[str, str]]:
        if facts.num_classes is not None and config.k > facts.num_images:
            yield (
                "k",
                f"k {config.k} is above the bank of {facts.num_images} training images; "
                f"take at most {facts.num_images}",
            )

    @classmethod
    def warnings(cls, config: Any, facts: Facts) -> Iterable[tuple[str, str]]:
        each = facts.num_images // facts.num_classes if facts.num_classes else 0
        if each and config.k > each:
            yield (
                "k",
                f"{config.k} neighbours are more than the {each} images of a class, so that other "
                f"classes must vote; take well below {each}",
            )

    def evaluate(self, subject: Subject) -> Evaluation:
        bank = subject.projected(self.config.layer).bank
        assert bank.train_labels is not None
        assert bank.test_labels is not None
        predictions = knn_predict(
            bank.train,
            bank.train_labels,
            bank.test,
            num_classes=bank.num_classes,
            k=self.config.k,
            temperature=self.config.temperature,
            device=bank.compute_device,
        )
        metrics = {
            "top1": top1_accuracy(predictions, bank.test_labels),
            "mean_per_class": mean_class_accuracy(predictions, bank.test_labels),
        }
        layer = self.config.layer
        return Evaluation({at_layer(name, layer): value for name, value in metrics.items()})
