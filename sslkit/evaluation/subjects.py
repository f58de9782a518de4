"""The subjects of an evaluation, which are the trained encoder, the untrained one and raw samples,
and what evaluators are given of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sslkit.api import (
    AugmentedViews,
    EncoderName,
    Evaluation,
    EvaluationImages,
    Evaluator,
    FeatureBank,
    FeatureEvaluator,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    MethodEmbeddings,
    OwnDataEvaluator,
    OwnDataInput,
    PixelInput,
    Split,
    SubjectName,
)
from sslkit.api.evaluation_inputs import EVALUATION_BATCH
from sslkit.parallel.shared_work import SharedWork

from .features import BankSpec, centre_, extract, pixel_features
from .labels import beside

_PAIR_BATCH = 256


class Subject(AugmentedViews, ABC):
    """One of the three."""

    name: SubjectName
    networks: nn.Module
    """All that an evaluator gets at, and must leave as it is."""

    def __init__(self, images: EvaluationImages, seed: int, work: SharedWork) -> None:
        self._images = images
        self._seed = seed
        self._work = work

    @abstractmethod
    def features(self, batches: Iterable[Tensor], room: BankSpec | None = None) -> Tensor:
        """(N, F) of all batches, (B, C, S, S) each."""

    @abstractmethod
    def evaluate(self, evaluator: Evaluator, bank: FeatureBank) -> Evaluation:
        """Hands an evaluator, which is a part of itself, what its kind is given. bank: for those
        that measure features. Raises what the evaluator raises, and TypeError where it is of
        none of the three kinds, or of one that this subject has nothing for."""

    def take_bank(self, with_train: bool = True) -> FeatureBank:
        """The features of both splits, which all ranks take together; on all but the first the
        bank is empty. with_train: False leaves out those of the training split, where there is a
        test split. Raises DataError."""
        images = self._images
        counts = {split: images.num_images(split) for split in ("train", "test")}
        with_train = with_train or not counts["test"]
        wanted: list[Split] = ["train"] if with_train else []
        wanted += ["test"] if counts["test"] else []
        together = sum(counts.values())
        taken = {
            split: self.features(
                self._batches(split), BankSpec(counts[split], together, self._work)
            )
            for split in wanted
        }
        self._work.settle()  # the reading may have replaced labels
        if not self._work.world.is_first:
            return empty_bank(images)
        one = next(iter(taken.values()))
        nothing = one.new_empty(0, one.shape[1])
        train, test = taken.get("train", nothing), taken.get("test", nothing)
        train_labels = images.labels("train") if with_train else images.labels("train")[:0]
        return FeatureBank(
            train,
            test,
            beside(train_labels, train),
            beside(images.labels("test"), test),
            images.class_names,
            images.device,
        )

    def _batches(self, split: Split) -> Iterable[Tensor]:
        """The batches of this rank."""
        images, world = self._images, self._work.world
        if world.size == 1:
            return images.preprocessed(split)
        every = torch.split(torch.arange(images.num_images(split)), EVALUATION_BATCH)
        own = self._work.own(every)
        return images.preprocessed(split, torch.cat(own), EVALUATION_BATCH) if own else ()


def empty_bank(images: EvaluationImages) -> FeatureBank:
    """A bank without rows."""
    rows, labels = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return FeatureBank(rows, rows, labels, labels, images.class_names, images.device)


class EncoderSubject(Subject):
    """An encoder with the layers of its projection head."""

    name: EncoderName

    def __init__(
        self,
        name: EncoderName,
        encoder: nn.Module,
        projection_layers: Sequence[nn.Module],
        images: EvaluationImages,
        seed: int,
        embeddings: MethodEmbeddings,
        work: SharedWork,
    ) -> None:
        super().__init__(images, seed, work)
        self.name = name
        self.networks = nn.Sequential(encoder, *projection_layers)
        self._encoder = encoder
        self._layers = tuple(projection_layers)
        self._embeddings = embeddings

    def features(self, batches: Iterable[Tensor], room: BankSpec | None = None) -> Tensor:
        return extract(self._encoder, batches, self._images.compute, room)

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        first, second = self._images.pairs(num)
        return (
            self.features(torch.split(first, _PAIR_BATCH)),
            self.features(torch.split(second, _PAIR_BATCH)),
        )

    def evaluate(self, evaluator: Evaluator, bank: FeatureBank) -> Evaluation:
        seed, layers = self._seed, self._layers
        match evaluator:
            case FeatureEvaluator():
                noun = self._images.sample.noun
                return evaluator.evaluate(
                    FeatureInput(self.name, bank, seed, layers, self, self._embeddings, noun)
                )
            case ImageEvaluator():
                return evaluator.evaluate(
                    ImageInput(self.name, self._encoder, self._images, seed, layers)
                )
            case OwnDataEvaluator():
                return evaluator.evaluate(
                    OwnDataInput(self.name, self._encoder, seed, self._images.device)
                )
        raise _no_kind(evaluator)


class RawSubject(Subject):
    """The samples themselves, mean-centred: pixels of images."""

    def __init__(self, images: EvaluationImages, seed: int, work: SharedWork) -> None:
        super().__init__(images, seed, work)
        self.name = images.sample.raw
        self.networks = nn.Sequential()
        self._mean: Tensor | None = None

    def features(self, batches: Iterable[Tensor], room: BankSpec | None = None) -> Tensor:
        return pixel_features(batches, room=room)

    def take_bank(self, with_train: bool = True) -> FeatureBank:
        bank = super().take_bank()  # the mean is that of the training split
        self._mean = centre_(bank) if self._work.world.is_first else None
        return bank

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        first, second = (self.features([views]) for views in self._images.pairs(num))
        mean = 0.0 if self._mean is None else self._mean.to(first.device)
        return first - mean, second - mean

    def evaluate(self, evaluator: Evaluator, bank: FeatureBank) -> Evaluation:
        match evaluator:
            case FeatureEvaluator():
                noun = self._images.sample.noun
                return evaluator.evaluate(
                    FeatureInput(self.name, bank, self._seed, views=self, noun=noun)
                )
            case OwnDataEvaluator():
                return evaluator.evaluate_pixels(PixelInput(self._seed, self._images.device))
        raise _no_kind(evaluator)


def _no_kind(evaluator: Evaluator) -> TypeError:
    return TypeError(
        f"{type(evaluator).__name__} is none of FeatureEvaluator, ImageEvaluator (which has no "
        "pixel baseline) and OwnDataEvaluator"
    )
