"""The linear probe on cached features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.interfaces import Evaluation, Evaluator, EvaluatorConfig, Subject
from sslkit.nn.classification import mean_class_accuracy, top1_accuracy
from sslkit.nn.logistic_regression import LinearClassifiers, fit_penalties
from sslkit.randomness import SampleRandom

_BLOCK_ELEMENTS = 1 << 28
"""Standardised features held at once (1 GiB of float32)."""
_TOLERANCE = 1e-4
"""Largest entry of the gradient at which a fit ends (scikit-learn's default). Below it accuracies
move by less than a fifth of their standard error."""


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
        entropy. Equal accuracies go to the strongest. All are fitted in the same passes over the
        features."""
        selection_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
        """Part of each class of the training split that is held out to choose `l2`. The chosen
        one is then fitted on the whole training split."""
        max_iterations: PositiveInt = 100
        """L-BFGS iterations for each penalty, at most."""

    def evaluate(self, subject: Subject) -> Evaluation:
        bank = subject.bank
        assert bank.train_labels is not None
        assert bank.test_labels is not None
        fraction = self.config.selection_fraction
        fitting, held_out = stratified_split(bank.train_labels.cpu(), fraction, subject.seed)
        if len(held_out) == 0:
            return Evaluation(skipped="no class has two labelled images to choose l2 with")
        mean, std = _scale(bank.train)

        def standardised(
            features: Tensor, labels: Tensor, rows: Tensor | None = None
        ) -> _Standardised:
            return _Standardised(features, labels, mean, std, bank.compute_device, rows)

        train = standardised(bank.train, bank.train_labels)
        l2, selected, start = self._select(
            standardised(bank.train, bank.train_labels, fitting),
            standardised(bank.train, bank.train_labels, held_out),
            bank.num_classes,
        )
        classifier = self._fit(train, bank.num_classes, [l2], start)
        test = standardised(bank.test, bank.test_labels)
        (predictions,) = test.predictions(classifier)
        return Evaluation(
            metrics={
                "top1": top1_accuracy(predictions, bank.test_labels),
                "mean_per_class": mean_class_accuracy(predictions, bank.test_labels),
                "l2": l2,
                "selection_top1": selected,
            }
        )

    def _select(
        self, fitting: _Standardised, held_out: _Standardised, num_classes: int
    ) -> tuple[float, float, LinearClassifiers]:
        """The best penalty, its accuracy on the held-out part, its classifier."""
        penalties = sorted(self.config.l2, reverse=True)
        classifiers = self._fit(fitting, num_classes, penalties)
        predictions = held_out.predictions(classifiers)
        accuracies = [top1_accuracy(found, held_out.chosen_labels) for found in predictions]
        best = accuracies.index(max(accuracies))
        chosen = LinearClassifiers(
            classifiers.weight[best, None], classifiers.bias[best, None], classifiers.iterations
        )
        return penalties[best], accuracies[best], chosen

    def _fit(
        self,
        data: _Standardised,
        num_classes: int,
        penalties: list[float],
        start: LinearClassifiers | None = None,
    ) -> LinearClassifiers:
        parts = list(data.blocks()) if data.fits else None
        return fit_penalties(
            lambda: data.blocks() if parts is None else parts,
            len(data),
            num_classes,
            l2=penalties,
            start=start,
            max_iterations=self.config.max_iterations,
            tolerance=_TOLERANCE,
        )


def _scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature. Features that hardly vary (below a thousandth of the
    largest deviation) are not blown up."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    return mean, std.clamp_min(max(1e-3 * float(std.max()), 1e-12))


@dataclass(frozen=True)
class _Standardised:
    """Rows of a split with mean 0 and variance 1 over the training split, on the device where the
    classifiers are computed: kept where they fit into one block, else made anew at every pass."""

    features: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    device: torch.device
    rows: Tensor | None = None
    """(n,) indices of the rows, on the CPU; None: all."""

    def __len__(self) -> int:
        return len(self.features if self.rows is None else self.rows)

    @property
    def chosen_labels(self) -> Tensor:
        """The labels of the rows."""
        labels = self.labels
        return labels if self.rows is None else labels[self.rows.to(labels.device)]

    @property
    def fits(self) -> bool:
        """Whether all rows make one block."""
        return len(self) <= self._block_rows

    @property
    def _block_rows(self) -> int:
        return max(1, _BLOCK_ELEMENTS // self.features.shape[1])

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(n, F) standardised features and (n,) labels, block by block."""
        mean, std = self.mean.to(self.device), self.std.to(self.device)
        for start in range(0, len(self), self._block_rows):
            part: slice | Tensor = slice(start, start + self._block_rows)
            if self.rows is not None:
                part = self.rows[part].to(self.features.device)
            features = self.features[part].to(self.device)
            features = features.sub_(mean) if self.rows is not None else features - mean
            yield features.div_(std), self.labels[part].to(self.device)

    def predictions(self, classifiers: LinearClassifiers) -> Tensor:
        """(P, n) classes under each classifier, where the labels are."""
        parts = [classifiers.predict_all(features) for features, _ in self.blocks()]
        return torch.cat(parts, dim=1).to(self.labels.device)


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
