"""Features without images, for tests of evaluators."""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.api import AugmentedViews, FeatureBank


def unlabelled(train: Tensor, test: Tensor) -> FeatureBank:
    """Features of images that have no label."""
    none = (torch.full((len(rows),), -1) for rows in (train, test))
    return FeatureBank(train, test, *none)


class Pairs(AugmentedViews):
    """Two views whose features are known."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self._views = first, second

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        return self._views
