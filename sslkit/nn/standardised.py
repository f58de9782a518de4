"""Standardised features of some rows, on the device where classifiers are computed.

Shapes: N rows of all, n of those chosen, F feature width, P classifiers, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .logistic_regression import LinearClassifiers

_BLOCK_ELEMENTS = 1 << 28
"""Standardised features held at once (1 GiB of float32)."""


def feature_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature. Features that hardly vary (below a thousandth of the
    largest deviation, or by what float32 rounds the largest mean to) are not blown up."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    rounding = 1e-6 * float(mean.abs().max())
    return mean, std.clamp_min(max(1e-3 * float(std.max()), rounding, 1e-12))


@dataclass(frozen=True)
class Standardised:
    """Rows with mean 0 and variance 1 over the features that `mean` and `std` are of: kept where
    they fit into one block, else made anew at every pass."""

    features: Tensor
    """(N, F)."""
    labels: Tensor
    """(N,) int64."""
    mean: Tensor
    std: Tensor
    device: torch.device
    rows: Tensor | None = None
    """(n,) indices of the rows, on the CPU; None: all."""

    def __len__(self) -> int:
        return len(self.features if self.rows is None else self.rows)

    @property
    def width(self) -> int:
        """F."""
        return self.features.shape[1]

    @property
    def chosen_labels(self) -> Tensor:
        """(n,) labels of the rows."""
        labels = self.labels
        return labels if self.rows is None else labels[self.rows.to(labels.device)]

    @property
    def fits(self) -> bool:
        """Whether all rows make one block."""
        return len(self) <= self._block_rows

    @property
    def _block_rows(self) -> int:
        return max(1, _BLOCK_ELEMENTS // self.width)

    def select(self, rows: Tensor) -> Standardised:
        """Some of these rows. rows: (n,), on the CPU."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def times(self, matrix: Tensor) -> Standardised:
        """These rows, standardised, times a matrix (F, A) on the computing device."""
        features = torch.cat([block @ matrix for block, _ in self.blocks()])
        zero = features.new_zeros(features.shape[1])
        return Standardised(features, self.chosen_labels, zero, zero + 1.0, self.device)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(n, F) standardised features and (n,) labels, block by block."""
        for start in range(0, len(self), self._block_rows):
            part: slice | Tensor = slice(start, start + self._block_rows)
            if self.rows is not None:
                part = self.rows[part].to(self.features.device)
            features = self.features[part].to(self.device)
            mean, std = self.mean.to(self.device), self.std.to(self.device)
            features = features.sub_(mean) if self.rows is not None else features - mean
            yield features.div_(std), self.labels[part].to(self.device)

    def predictions(self, classifiers: LinearClassifiers) -> Tensor:
        """(P, n) classes under each classifier, where the labels are."""
        parts = [classifiers.predict_all(features) for features, _ in self.blocks()]
        return torch.cat(parts, dim=1).to(self.labels.device)

    def judged(self, classifiers: LinearClassifiers) -> Judged:
        """How well each classifier does on these rows."""
        correct, losses = [], []
        for features, labels in self.blocks():
            right, loss = classifiers.judge(features, labels)
            correct.append(right.cpu())
            losses.append(loss)
        return Judged(torch.cat(correct, dim=1), torch.stack(losses).sum(dim=0))


class Judged(NamedTuple):
    """P classifiers on some rows."""

    correct: Tensor  # (P, n) bool, on the CPU
    losses: Tensor  # (P,) float64, on the CPU
    """Sums of the cross entropies."""
