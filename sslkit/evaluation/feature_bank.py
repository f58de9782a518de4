"""Evaluators on features alone, for programs that have no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslkit.api import Evaluation, FeatureBank, FeatureEvaluator, FeatureInput, Slot, Split
from sslkit.errors import DataError, RecipeError

from .collector import NamedEvaluator, as_one, named_evaluators
from .features import count_not_finite
from .isolation import isolated
from .labels import label_problem, labelled_rows, numbered_classes


def evaluate_features(
    bank: FeatureBank, evaluators: Sequence[Slot[Any]], seed: int = 0
) -> Mapping[str, Evaluation]:
    """See `sslkit.evaluate_features`."""
    bank = _checked(bank)
    named = named_evaluators([(slot.name.rpartition(":")[2], slot.build()) for slot in evaluators])
    for each in named:
        _refuse_more_than_features(each)
    return {each.key: _measured(each, bank, seed) for each in named}


def _measured(named: NamedEvaluator, bank: FeatureBank, seed: int) -> Evaluation:
    if named.evaluator.requires_labels:
        problem = label_problem(bank.train_labels, bank.test_labels)
        if problem is not None:
            return Evaluation(skipped=problem)
        bank = labelled_rows(bank)
    found = []
    for part in named.feature_parts_on("trained"):
        with isolated(seed, named.key):
            found.append(part.evaluate(FeatureInput("trained", bank, seed)))
    return as_one(found)


def _refuse_more_than_features(named: NamedEvaluator) -> None:
    for part in named.parts_on("trained"):
        if not isinstance(part, FeatureEvaluator):
            raise RecipeError(
                f"evaluator '{named.key}' works on images, not on features alone; use `sslkit eval`"
            )
        if part.projection_layer:
            raise RecipeError(
                f"evaluator '{named.key}' reads layer {part.projection_layer} of a projection "
                "head, and features have none; give a bank of that layer's output, and layer=0"
            )


def _checked(bank: FeatureBank) -> FeatureBank:
    """The bank as float32 features with int64 labels and named classes, from any arrays. Raises
    DataError."""
    train, test = _checked_split(bank, "train"), _checked_split(bank, "test")
    if train[0].shape[1] != test[0].shape[1]:
        raise DataError(
            f"features: {train[0].shape[1]} numbers in a row of train and {test[0].shape[1]} in "
            "one of test; take both from one encoder"
        )
    names = bank.class_names or numbered_classes(train[1], test[1])
    bank = FeatureBank(train[0], test[0], train[1], test[1], tuple(names), bank.device)
    if broken := count_not_finite(bank.train) + count_not_finite(bank.test):
        raise DataError(f"features: {broken} of them are not finite; see what the encoder gives")
    return bank


def _checked_split(bank: FeatureBank, split: Split) -> tuple[Tensor, Tensor]:
    """Its features (N, F) and its labels (N,)."""
    rows = torch.as_tensor(getattr(bank, split)).detach().float()
    labels = torch.as_tensor(getattr(bank, f"{split}_labels"))
    if rows.ndim != 2 or labels.shape != rows.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"features: {split} is {tuple(rows.shape)}, its labels {labels.dtype} "
            f"{tuple(labels.shape)}; valid is (N, F) with whole numbers (N,), -1 for none"
        )
    return rows, labels.to(rows.device, torch.int64)
