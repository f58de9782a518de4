"""Fitting a grid of linear classifiers and choosing one, on labelled training images alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from sslkit.interfaces import FeatureBank
from sslkit.nn.classification import top1_accuracy
from sslkit.nn.labels import stratified_split
from sslkit.nn.linear_sgd import fit_by_sgd
from sslkit.nn.logistic_regression import LinearClassifiers, fit_penalties
from sslkit.nn.standardised import Standardised, feature_scale

_TOLERANCE = 1e-4
"""Largest entry of the gradient at which a fit ends (scikit-learn's default). Below it accuracies
move by less than a fifth of their standard error."""

Candidate = Mapping[str, float]
"""The settings of one classifier, by the name of their field."""


class Solver(ABC):
    """Fits linear classifiers for many settings in the same passes over the features."""

    candidates: Sequence[Candidate]
    """Those preferred at equal accuracy first."""

    @abstractmethod
    def fit(
        self,
        data: Standardised,
        num_classes: int,
        candidates: Sequence[Candidate],
        start: LinearClassifiers | None = None,
    ) -> LinearClassifiers:
        """One classifier for each candidate. start: where a search may begin."""


class LBFGS(Solver):
    """Logistic regression to the optimum; the strongest penalty is preferred."""

    def __init__(self, l2: Sequence[float], max_iterations: int) -> None:
        self.candidates = [{"l2": value} for value in sorted(l2, reverse=True)]
        self.max_iterations = max_iterations

    def fit(
        self,
        data: Standardised,
        num_classes: int,
        candidates: Sequence[Candidate],
        start: LinearClassifiers | None = None,
    ) -> LinearClassifiers:
        parts = list(data.blocks()) if data.fits else None
        return fit_penalties(
            lambda: data.blocks() if parts is None else parts,
            len(data),
            num_classes,
            l2=[candidate["l2"] for candidate in candidates],
            start=start,
            max_iterations=self.max_iterations,
            tolerance=_TOLERANCE,
        )


class SGD(Solver):
    """A fixed number of epochs; low learning rates and strong decay are preferred."""

    def __init__(
        self,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        *,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """lr: at 256 images; it follows the size of the batch linearly."""
        grid = product(sorted(lr), sorted(weight_decay, reverse=True))
        self.candidates = [{"lr": rate, "weight_decay": decay} for rate, decay in grid]
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed

    def fit(
        self,
        data: Standardised,
        num_classes: int,
        candidates: Sequence[Candidate],
        start: LinearClassifiers | None = None,
    ) -> LinearClassifiers:
        size = min(self.batch_size, len(data))
        return fit_by_sgd(
            data,
            num_classes,
            lr=[candidate["lr"] * size / 256 for candidate in candidates],
            weight_decay=[candidate["weight_decay"] for candidate in candidates],
            epochs=self.epochs,
            batch_size=size,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Chosen:
    """A classifier and how it was chosen."""

    classifier: LinearClassifiers
    """Of one problem, fitted on all rows."""
    candidate: Candidate
    selection_top1: float
    """Accuracy of the candidate on the held-out rows, fitted on the others."""


def standardised_splits(bank: FeatureBank) -> tuple[Standardised, Standardised]:
    """Training and test features, both standardised by the training split, which needs no label."""
    assert bank.train_labels is not None
    assert bank.test_labels is not None
    device = bank.compute_device
    mean, std = (part.to(device) for part in feature_scale(bank.train))
    return (
        Standardised(bank.train, bank.train_labels, mean, std, device),
        Standardised(bank.test, bank.test_labels, mean, std, device),
    )


def choose_and_fit(
    data: Standardised, num_classes: int, solver: Solver, fraction: float, seed: int
) -> Chosen | None:
    """Fits every candidate on a part of the rows, takes the most accurate on the rest, which is
    `fraction` of each class, and fits it on all rows. None where no class has two images."""
    fitting, held_out = stratified_split(data.chosen_labels.cpu(), fraction, seed)
    if len(held_out) == 0:
        return None
    classifiers = solver.fit(data.select(fitting), num_classes, solver.candidates)
    judged = data.select(held_out)
    predictions = judged.predictions(classifiers)
    accuracies = [top1_accuracy(found, judged.chosen_labels) for found in predictions]
    best = accuracies.index(max(accuracies))
    start = LinearClassifiers(classifiers.weight[best, None], classifiers.bias[best, None])
    candidate = solver.candidates[best]
    final = solver.fit(data, num_classes, [candidate], start)
    return Chosen(final, candidate, accuracies[best])
