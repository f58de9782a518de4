"""The linear probe on cached features."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.interfaces import Evaluation, Evaluator, EvaluatorConfig, FeatureBank, Subject
from sslkit.nn.classification import mean_class_accuracy, top1_accuracy
from sslkit.nn.logistic_regression import LinearClassifiers, fit_logistic_regression
from sslkit.randomness import SampleRandom


class Linear(Evaluator):
    """Multinomial logistic regression on frozen features by full-batch L-BFGS, the penalty chosen
    on a part of the training split that is held out for it: the transfer protocol of Chen et al.
    2020 (arXiv:2002.05709, B.8). Features are standardised by the training split. No augmentation;
    deterministic. It is close to, but not the same as, 90 epochs of SGD on augmented images.

    Metrics: `top1`, `mean_per_class`, `l2` (the penalty chosen), `selection_top1` (its accuracy on
    the held-out part; the test split has no part in the choice)."""

    class Config(EvaluatorConfig):
        l2: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5,
        )  # fmt: skip
        """Penalties to choose from: l2 / 2 * squared norm of the weights, beside the mean cross
        entropy. Equal accuracies go to the strongest."""
        selection_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
        """Part of each class of the training split that is held out to choose `l2`. The chosen
        one is then fitted on the whole training split."""
        max_iterations: PositiveInt = 100
        """L-BFGS iterations for each penalty; each starts from the solution of the one before."""

    def evaluate(self, subject: Subject) -> Evaluation:
        bank = _standardised(subject.bank)
        assert bank.train_labels is not None
        assert bank.test_labels is not None
        penalties = sorted(self.config.l2, reverse=True)
        fraction = self.config.selection_fraction
        fitting, held_out = stratified_split(bank.train_labels.cpu(), fraction, subject.seed)
        if len(held_out) == 0:
            return Evaluation(skipped="no class has two labelled images to choose l2 with")
        fitting, held_out = fitting.to(bank.train.device), held_out.to(bank.train.device)
        l2, selected, classifier = self._select(
            replace(
                bank,
                train=bank.train[fitting],
                train_labels=bank.train_labels[fitting],
                test=bank.train[held_out],
                test_labels=bank.train_labels[held_out],
            ),
            penalties,
        )
        classifier = self._fit(bank.train, bank.train_labels, bank.num_classes, l2, classifier)
        predictions = classifier.predict(0, bank.test)
        return Evaluation(
            metrics={
                "top1": top1_accuracy(predictions, bank.test_labels),
                "mean_per_class": mean_class_accuracy(predictions, bank.test_labels),
                "l2": l2,
                "selection_top1": selected,
            }
        )

    def _select(
        self, bank: FeatureBank, penalties: list[float]
    ) -> tuple[float, float, LinearClassifiers]:
        """The best penalty, its accuracy on the held-out part (`bank.test`), its classifier.
        penalties: from the strongest to the weakest."""
        assert bank.train_labels is not None
        assert bank.test_labels is not None
        best: tuple[float, float, LinearClassifiers] | None = None
        classifier: LinearClassifiers | None = None
        for l2 in penalties:
            classifier = self._fit(bank.train, bank.train_labels, bank.num_classes, l2, classifier)
            accuracy = top1_accuracy(classifier.predict(0, bank.test), bank.test_labels)
            if best is None or accuracy > best[1]:
                best = (l2, accuracy, classifier)
        assert best is not None
        return best

    def _fit(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        l2: float,
        start: LinearClassifiers | None,
    ) -> LinearClassifiers:
        return fit_logistic_regression(
            features[None],
            labels[None],
            num_classes,
            l2=l2,
            start=start,
            max_iterations=self.config.max_iterations,
        )


def _standardised(bank: FeatureBank) -> FeatureBank:
    """Each feature with mean 0 and variance 1 over the training split. Features that hardly vary
    (below a thousandth of the largest deviation) are not blown up."""
    mean, std = bank.train.mean(dim=0), bank.train.std(dim=0, correction=0)
    std = std.clamp_min(max(1e-3 * float(std.max()), 1e-12))
    return replace(bank, train=(bank.train - mean) / std, test=(bank.test - mean) / std)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of (the rest, the held-out part), each ascending. labels: (N,) int64 on the CPU.

    Of each class, `fraction` rounded is held out, at least one image where the class has two, and
    never all. Which ones depends on the seed and the images' indices only."""
    counts = labels.bincount()
    held = (counts * fraction).round().long().clamp_min(1).minimum(counts - 1).clamp_min(0)
    words = SampleRandom(seed, "linear", 0, torch.arange(len(labels))).bits("order", 2)
    order = ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)
    grouped = order[labels[order].argsort(stable=True)]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[grouped]]
    is_held = rank < held[labels[grouped]]
    return grouped[~is_held].sort().values, grouped[is_held].sort().values
