"""Fitting a grid of linear classifiers and choosing one, on labelled training images alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sslkit.api import FeatureBank
from sslkit.nn.linear_sgd import fit_by_sgd
from sslkit.nn.logistic_regression import LinearClassifiers
from sslkit.nn.penalty_search import Curvature, LabelledRows, feature_curvature, fit_penalties
from sslkit.nn.standardised import Standardised, feature_scale
from sslkit.nn.stratified import stratified_folds

_SEARCH_TOLERANCE = 1e-3
"""By which part of its minimum the loss may exceed it, while settings are chosen."""
_FINAL_TOLERANCE = 1e-4
"""The same for the classifier that is measured. No prediction on CIFAR-10 or digits then differs
from those at the optimum by more than rounding does (decision 0041)."""
_JUDGED = 10_000
"""Images to be judged before settings are chosen. Parts are held out in turn until then: all of
them where images are few, one where they are many, so that the cost stays bounded."""
Folds = Annotated[int, Field(ge=2)]

Candidate = Mapping[str, float]
"""The settings of one classifier, by the name of their field."""


class Solver(ABC):
    """Fits linear classifiers for many settings in the same passes over the features."""

    candidates: Sequence[Candidate]

    @abstractmethod
    def fit(
        self,
        data: Standardised,
        num_classes: int,
        candidates: Sequence[Candidate],
        start: LinearClassifiers | None = None,
        *,
        final: bool = False,
    ) -> LinearClassifiers:
        """One classifier for each candidate. start: where a search may begin. final: for the
        classifier that is measured, and not to choose settings."""

    def prepare(self, data: Standardised, num_classes: int) -> Standardised:
        """All rows as the fits take them, before any fit on some of them."""
        return data

    def restored(self, classifiers: LinearClassifiers) -> LinearClassifiers:
        """From classifiers of prepared rows, those of the rows as they were."""
        return classifiers


class LBFGS(Solver):
    """Logistic regression to the optimum."""

    def __init__(self, l2: Sequence[float], max_iterations: int) -> None:
        self.candidates = [{"l2": value} for value in sorted(l2, reverse=True)]
        self.max_iterations = max_iterations
        self._curvature: Curvature | None = None
        self._axes: Tensor | None = None

    def prepare(self, data: Standardised, num_classes: int) -> Standardised:
        """Finds the axes of the features once for all folds, and turns features that make one block
        to them: the norm of the weights, and so the minimum, is the same."""
        self._curvature = found = feature_curvature(
            LabelledRows(data.blocks, len(data), num_classes)
        )
        self._axes = found.axes if data.fits else None
        if self._axes is None:
            return data
        self._curvature = Curvature(found.values, axes=None)
        return data.times(self._axes)

    def restored(self, classifiers: LinearClassifiers) -> LinearClassifiers:
        if self._axes is None:
            return classifiers
        return replace(classifiers, weight=classifiers.weight @ self._axes.T)

    def fit(
        self,
        data: Standardised,
        num_classes: int,
        candidates: Sequence[Candidate],
        start: LinearClassifiers | None = None,
        *,
        final: bool = False,
    ) -> LinearClassifiers:
        parts = list(data.blocks()) if data.fits else None
        blocks = data.blocks if parts is None else lambda: parts
        return fit_penalties(
            LabelledRows(blocks, len(data), num_classes),
            l2=[candidate["l2"] for candidate in candidates],
            start=start,
            curvature=self._curvature,
            max_iterations=self.max_iterations,
            tolerance=_FINAL_TOLERANCE if final else _SEARCH_TOLERANCE,
        )


class SGD(Solver):
    """A fixed number of epochs."""

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
        *,
        final: bool = False,
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
    """The classifier of one problem, fitted on all rows."""
    candidate: Candidate
    selection_top1: float
    """Accuracy of the candidate on the held-out rows, fitted on the others."""
    judged: int
    """Rows that were held out."""

    def predictions(self, test: Standardised) -> Tensor:
        """(M,) classes of the test images."""
        return test.predictions(self.classifier)[0]

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        if self.classifier.converged:
            return []
        return ["the fit ended at max_iterations, before its optimum; raise max_iterations"]


def standardised_splits(bank: FeatureBank) -> tuple[Standardised, Standardised]:
    """Training and test features, both standardised by the training split, which needs no label."""
    device = bank.compute_device
    mean, std = (part.to(device) for part in feature_scale(bank.train))
    return (
        Standardised(bank.train, bank.train_labels, mean, std, device),
        Standardised(bank.test, bank.test_labels, mean, std, device),
    )


def choose_and_fit(
    data: Standardised, num_classes: int, solver: Solver, folds: int, seed: int
) -> Chosen | None:
    """Cross-validation: every candidate is judged on parts of the rows after fits on the others,
    and the best is fitted on all rows. None where no class has two images.

    The most accurate is chosen; where others are less accurate by no more than the standard error
    of the difference, paired by row, the one of them whose held-out cross entropy is lowest."""
    labels = data.chosen_labels.cpu()
    fold = stratified_folds(labels, folds, seed)
    if not bool((fold >= 0).any()):
        return None
    data = solver.prepare(data, num_classes)
    correct: list[Tensor] = []
    losses = torch.zeros(len(solver.candidates), dtype=torch.float64)
    judged, classifiers = 0, None
    for part in range(folds):
        held_out = (fold == part).nonzero().squeeze(1)
        if judged >= _JUDGED or len(held_out) == 0:
            break
        rest = data.select((fold != part).nonzero().squeeze(1))
        classifiers = solver.fit(rest, num_classes, solver.candidates, classifiers)
        found = data.select(held_out).judged(classifiers)
        correct.append(found.correct)
        losses += found.losses
        judged += len(held_out)
    right = torch.cat(correct, dim=1).double()
    best = _best(right, losses)
    assert classifiers is not None
    start = LinearClassifiers(classifiers.weight[best, None], classifiers.bias[best, None])
    candidate = solver.candidates[best]
    final = solver.restored(solver.fit(data, num_classes, [candidate], start, final=True))
    return Chosen(final, candidate, float(right[best].mean()), judged)


def _best(right: Tensor, losses: Tensor) -> int:
    """The row to choose. right: (P, n) float64, 1 where a held-out row was right; losses: (P,)."""
    lost = right[right.mean(dim=1).argmax()] - right  # against the most accurate
    error = lost.std(dim=1, correction=0) / lost.shape[1] ** 0.5
    near = lost.mean(dim=1) <= error
    return int(torch.where(near, losses, torch.inf).argmin())
