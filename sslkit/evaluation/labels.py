"""Labels beside features: class names that are missing, and images that have no label."""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.api import FeatureBank

NO_LABELS = "no labels"


def beside(labels: Tensor, rows: Tensor) -> Tensor:
    """The labels of these rows, beside them."""
    if len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels for {len(rows)} images")
    return labels.to(rows.device, torch.int64)


def numbered_classes(*labels: Tensor | None) -> list[str]:
    """Class names for labels that came without."""
    highest = max(
        (int(part.max()) for part in labels if part is not None and len(part)), default=-1
    )
    return [str(index) for index in range(highest + 1)]


def any_labelled(labels: Tensor) -> bool:
    return bool((labels >= 0).any())


def labelled_rows(bank: FeatureBank) -> FeatureBank:
    """The bank without the rows that have no label (negative)."""
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


def label_problem(train_labels: Tensor, test_labels: Tensor, noun: str = "image") -> str | None:
    """Why no accuracy on these labels can tell a good encoder from a bad one, if so. Both (N,),
    negative where there is none. noun: what one of them belongs to."""
    train, test = _classes(train_labels), _classes(test_labels)
    if not len(train) or not len(test):
        return NO_LABELS
    for split, classes in (("training", train), ("test", test)):
        if len(classes) == 1:
            return f"all labelled {split} {noun}s are of one class, so that every answer is right"
    if not torch.isin(test, train).any():
        return f"no test {noun} is of a class that the training {noun}s have"
    return None


def label_notes(train_labels: Tensor, test_labels: Tensor, noun: str = "image") -> list[str]:
    """What a reader must know of these labels beside the numbers."""
    test = test_labels[test_labels >= 0].cpu()
    absent = test[~torch.isin(test, _classes(train_labels))]
    if not len(absent):
        return []
    return [
        f"{len(absent):,} of {len(test):,} test {noun}s are of {len(_classes(absent))} "
        f"classes without a training {noun}, and count as wrong"
    ]


def _classes(labels: Tensor) -> Tensor:
    """The values that occur."""
    return torch.tensor(sorted(set(labels[labels >= 0].tolist())), dtype=torch.int64)
