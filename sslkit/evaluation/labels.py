"""Labels beside features: class names that are missing, and images that have no label."""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.interfaces import FeatureBank


def beside(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """The labels of these rows, beside them."""
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels for {len(rows)} images")
    return None if labels is None else labels.to(rows.device, torch.int64)


def numbered_classes(*labels: Tensor | None) -> list[str]:
    """Class names for labels that came without."""
    highest = max(
        (int(part.max()) for part in labels if part is not None and len(part)), default=-1
    )
    return [str(index) for index in range(highest + 1)]


def any_labelled(labels: Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).any())


def labelled_rows(bank: FeatureBank) -> FeatureBank:
    """The bank without the images that have no label (negative)."""
    if bank.train_labels is None or bank.test_labels is None:
        return bank
    train, test = bank.train_labels >= 0, bank.test_labels >= 0
    if train.all() and test.all():
        return bank
    return FeatureBank(
        bank.train[train],
        bank.test[test],
        bank.train_labels[train],
        bank.test_labels[test],
        bank.class_names,
        bank.device,
    )
