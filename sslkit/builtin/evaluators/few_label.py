"""Accuracy from a handful of labels per class, over many draws of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import (
    Evaluation,
    EvaluatorConfig,
    FeatureBank,
    FeatureEvaluator,
    FeatureInput,
    ImageScores,
    RunFacts,
)
from sslkit.nn.logistic_regression import fit_logistic_regression
from sslkit.nn.stratified import grouped_by_class, random_order
from sslkit.randomness import SampleRandom

_BLOCK_ELEMENTS = 1 << 26
"""Feature values gathered at once (256 MiB); draws fitted together, and test rows scored together,
follow from the shapes."""


class FewLabel(FeatureEvaluator):
    """Logistic regression on frozen features from a few labels per class, with many draws of
    them. It shows what pre-training is worth where full-label accuracy is near its ceiling.

    Features are centred by the training split's mean and L2-normalised (the CL2N of Wang et al.
    2019, arXiv:1911.04623), which needs no label and treats pixels and encoders alike; on them a
    logistic regression of fixed strength, as in Tian et al. 2020 (arXiv:2003.11539), since a few
    labels leave nothing to tune it on. The draws depend on the seed alone: every subject gets the
    same labels, so differences are paired, and a draw's labels for 1 per class are among its
    labels for 5. Every draw is scored on the whole test split.

    Metrics: `top1_<n>` for each n of `labels_per_class`, the mean over draws; the draws are kept
    for intervals."""

    class Config(EvaluatorConfig):
        labels_per_class: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10)
        """Labelled training images per class. A number above the size of the smallest class is
        left out, and the report says so."""
        draws: Annotated[int, Field(ge=2)] = 20
        """Independent draws of the labelled images."""
        l2: PositiveFloat = 0.1
        """Strength of the penalty, l2 / 2 * squared norm of the weights, beside the summed cross
        entropy: scikit-learn's 1 / C. Stronger penalties lower the untrained baseline most."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        sizes = config.labels_per_class
        if len(set(sizes)) < len(sizes):
            yield "labels_per_class", f"{list(sizes)} names a number twice; name each once"
        classes, labelled = facts.classes_present, facts.num_labelled
        if classes and max(sizes) * classes > labelled:
            yield (
                "labels_per_class",
                f"{max(sizes)} labels of each of {classes} classes are more than the {labelled} "
                f"labelled training {facts.sample.noun}s; take at most {labelled // classes}",
            )

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        least = min(facts.class_sizes, default=0)
        above = [size for size in config.labels_per_class if size > least]
        if least and above:
            yield (
                "labels_per_class",
                f"{above} will be left out: the smallest class has {least} labelled training "
                f"{facts.sample.noun}s",
            )

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank = given.bank
        counts = _class_sizes(bank.train_labels)
        smallest = int(counts.min())
        sizes = [size for size in self.config.labels_per_class if size <= smallest]
        left_out = sorted(set(self.config.labels_per_class) - set(sizes))
        if not sizes:
            return Evaluation(
                skipped=f"the smallest class has {smallest} labelled training {given.noun}s, fewer "
                f"than any of {left_out}"
            )
        notes = [
            f"{size} labels per class left out: {int((counts < size).sum())} of {len(counts)} "
            f"classes have fewer (the smallest {smallest})"
            for size in left_out
        ]
        chosen = draw_labelled(bank.train_labels.cpu(), max(sizes), self.config.draws, given.seed)
        mean = bank.train.mean(dim=0)
        draws, images = {}, {}
        for size in sizes:
            rows = chosen[:, :, :size].flatten(1)
            found = _scored(bank, mean, rows, self.config.l2)
            draws[f"top1_{size}"] = (found.by_draw / len(bank.test)).tolist()
            images[f"top1_{size}"] = ImageScores(found.by_image / len(rows))
        means = {name: sum(values) / len(values) for name, values in draws.items()}
        return Evaluation(means, draws, images, notes=notes)


def draw_labelled(
    labels: Tensor,  # (N,) int64, on the CPU
    per_class: int,
    draws: int,
    seed: int,
) -> Tensor:
    """(draws, C, per_class) indices of training images: within a draw, the first `per_class` of
    each class that occurs, in an order that depends on the seed, the draw and the images' indices
    only. Every class must have that many images."""
    counts = _class_sizes(labels)
    starts = counts.cumsum(0) - counts
    places = starts[:, None] + torch.arange(per_class)  # (C, per_class)
    indices = torch.arange(len(labels))
    result = []
    for draw in range(draws):
        order = random_order(SampleRandom(seed, "few_label", draw, indices))
        result.append(grouped_by_class(labels, order)[places])
    return torch.stack(result)


def _class_sizes(labels: Tensor) -> Tensor:
    """Images of each class that has any, by class index."""
    counts = labels.bincount()
    return counts[counts > 0]


class _Right(NamedTuple):
    """How often the test images were classified right; float64 on the CPU."""

    by_draw: Tensor  # (draws,) images
    by_image: Tensor  # (M,) draws


def _scored(bank: FeatureBank, mean: Tensor, chosen: Tensor, l2: float) -> _Right:
    """Every draw on the test split; chosen: (draws, rows) indices of training images, on the
    CPU."""
    device = bank.compute_device
    mean = mean.to(device)

    def prepared(rows: Tensor) -> Tensor:
        return F.normalize(rows.to(device) - mean, dim=-1)

    block = max(1, _BLOCK_ELEMENTS // (chosen.shape[1] * bank.train.shape[1]))
    test_rows = max(1, _BLOCK_ELEMENTS // bank.test.shape[1])
    by_draw, by_image = [], torch.zeros(len(bank.test), dtype=torch.float64)
    for rows in torch.split(chosen, block):
        classifiers = fit_logistic_regression(
            prepared(bank.train[rows.to(bank.train.device)]),
            bank.train_labels[rows.to(bank.train_labels.device)].to(device),
            bank.num_classes,
            l2=l2 / chosen.shape[1],
        )
        by_draw.append(torch.zeros(len(rows), dtype=torch.float64))
        parts = torch.split(bank.test, test_rows), torch.split(bank.test_labels, test_rows)
        for number, (part, labels) in enumerate(zip(*parts, strict=True)):
            right = classifiers.predict_all(prepared(part)) == labels.to(device)
            by_draw[-1] += right.sum(dim=1).cpu()
            start = number * test_rows
            by_image[start : start + len(part)] += right.sum(dim=0).cpu()
    return _Right(torch.cat(by_draw), by_image)
