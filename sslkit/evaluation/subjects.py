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

from .features import BankSpec, centre_, extract, pixel_features
from .labels import beside

_PAIR_BATCH = 256


class Subject(AugmentedViews, ABC):
    """One of the three."""

    name: SubjectName
    networks: nn.Module
    """All that an evaluator gets at, and must leave as it is."""

    def __init__(self, images: EvaluationImages, seed: int) -> None:
        self._images = images
        self._seed = seed

    @abstractmethod
    def features(self, batches: Iterable[Tensor], room: BankSpec | None = None) -> Tensor:
        """(N, F) of all batches, (B, C, S, S) each."""

    @abstractmethod
    def evaluate(self, evaluator: Evaluator, bank: FeatureBank) -> Evaluation:
        """Hands an evaluator, which is a part of itself, what its kind is given. bank: for those
        that measure features. Raises what the evaluator raises, and TypeError where it is of
        none of the three kinds, or of one that this subject has nothing for."""

    def take_bank(self, with_train: bool = True) -> FeatureBank:
        """The features of both splits. with_train: False leaves out those of the training split,
        where there is a test split. Raises DataError."""
        images = self._images
        counts = {split: images.num_images(split) for split in ("train", "test")}
        with_train = with_train or not counts["test"]
        wanted: list[Split] = ["train"] if with_train else []
        wanted += ["test"] if counts["test"] else []
        taken = {
            split: self.features(
                images.preprocessed(split), BankSpec(counts[split], sum(counts.values()))
            )
            for split in wanted
        }
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
    ) -> None:
        super().__init__(images, seed)
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

    def __init__(self, images: EvaluationImages, seed: int) -> None:
        super().__init__(images, seed)
        self.name = images.sample.raw
        self.networks = nn.Sequential()
        self._mean: Tensor | None = None

    def features(self, batches: Iterable[Tensor], room: BankSpec | None = None) -> Tensor:
        return pixel_features(batches, room=room)

    def take_bank(self, with_train: bool = True) -> FeatureBank:
        bank = super().take_bank()  # the mean is that of the training split
        self._mean = centre_(bank)
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
