"""What evaluators are given: features, images, or an encoder alone. Every field is there in every
input; `sslkit.evaluation` makes them.

An input lives as long as the call of `evaluate`: an evaluator keeps nothing of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sslkit.deprecation import warn_of_old
from sslkit.errors import PluginError
from sslkit.nn.chunked import map_rows
from sslkit.nn.compute import Compute
from sslkit.nn.numerics import autocast

from .backbones import Preprocess
from .data import Batch
from .method import Apart
from .samples import SampleSpec
from .views import Augmentation

EVALUATION_BATCH = 512
"""Images that an encoder is given at a time."""
Split = Literal["train", "test"]
"""A split of the run\'s images."""
SubjectName = Literal["trained", "untrained", "pixels", "raw"]
"""What is measured: the trained encoder, the untrained one, or the samples themselves, which are
`pixels` of images and `raw` of anything else."""
EncoderName = Literal["trained", "untrained"]
"""What is measured, where pixels are not."""


@dataclass(frozen=True)
class FeatureBank:
    """Features of both splits, float32, in one place: on the training device, or in CPU memory
    where they are many."""

    train: Tensor  # (N_train, F)
    test: Tensor  # (N_test, F)
    train_labels: Tensor  # (N_train,) int64, negative where an image has none
    test_labels: Tensor  # (N_test,) int64
    class_names: Sequence[str] = ()
    device: torch.device | None = None
    """The training device, for evaluators to move blocks of features to; None: where they are."""

    @property
    def compute_device(self) -> torch.device:
        """Where evaluators should compute."""
        return self.device or self.train.device

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)


class AugmentedViews:
    """The features of augmented images, by the subject that is measured. The host gives one that
    has images; this one stands where there are none, in tests of evaluators."""

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        """Features of two views of `num` training images (of all, where there are fewer), each
        (num, F), row i of both from the same image; the same views for every subject. Raises
        ValueError without images."""
        raise ValueError("there are no images to make views of")


class MethodEmbeddings:
    """What the method hands to its loss: the embeddings of the first batch of the run. The host
    gives one that has a method for the trained encoder, during a run and at its end; this one
    stands for every other subject, and gives nothing."""

    @property
    def must_not_collapse(self) -> Mapping[str, Apart] | None:
        """`Method.must_not_collapse`; None says that the method names nothing."""
        return None

    def now(self) -> Mapping[str, Tensor]:
        """`Method.embed` of the batch, in training mode and without gradient; of entries with more
        than 16 positions, such as patches, those that `must_not_collapse` names, if it does."""
        return {}

    def untrained(self) -> Mapping[str, Tensor]:
        """The same batch, through the method as it was before the first step."""
        return {}

    def __call__(self) -> Mapping[str, Tensor]:
        """`now`, as interface 1 had it. Raises PluginError where there are none."""
        warn_of_old("FeatureInput.embeddings()", "embeddings.now()")
        found = self.now()
        if not found:
            raise PluginError(
                "there are embeddings of the trained encoder alone, and during a run: write "
                "embeddings.now(), which is empty elsewhere, and baselines = ()"
            )
        return found


NOT_OF_FEATURES = {
    "encoder": "derive from ImageEvaluator, which is given it",
    "images": "derive from ImageEvaluator, which is given them",
}
"""What evaluators on features were given in interface 1 -> what to write."""


@dataclass(frozen=True)
class FeatureInput:
    """What a `FeatureEvaluator` measures."""

    subject: SubjectName
    bank: FeatureBank
    """Its features. Without those of the training split (no rows) where no evaluator that is due
    reads them."""
    seed: int
    """The seed of the recipe; evaluators that draw (few_label) draw from it, equally for every
    subject, so that differences are paired."""
    projection_layers: Sequence[nn.Module] = ()
    """The layers of the projection head, in eval mode; the first takes the encoder's features.
    None for pixels, and where the method gives none."""
    views: AugmentedViews = field(default_factory=AugmentedViews)
    embeddings: MethodEmbeddings = field(default_factory=MethodEmbeddings)
    noun: str = "image"
    """What a row of the bank is, for what people read: `image`, or `sample` of anything else."""

    @property
    def name(self) -> SubjectName:
        """`subject`, as it was called in interface 1."""
        warn_of_old("FeatureInput.name", "subject")
        return self.subject

    @property
    def positive_pairs(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        """`views.pairs`, as it was called in interface 1."""
        warn_of_old("FeatureInput.positive_pairs", "views.pairs(num)")
        return self.views.pairs

    @property
    def untrained_embeddings(self) -> Callable[[], Mapping[str, Tensor]]:
        """`embeddings.untrained`, as it was called in interface 1."""
        warn_of_old("FeatureInput.untrained_embeddings", "embeddings.untrained()")
        return self.embeddings.untrained

    def __getattr__(self, name: str) -> Any:
        if name in NOT_OF_FEATURES:
            raise PluginError(f"FeatureInput has no {name}: {NOT_OF_FEATURES[name]}")
        raise AttributeError(f"'FeatureInput' object has no attribute '{name}'")

    def projected(self, layer: int) -> FeatureInput:
        """The same with the output of layer `layer` of the projection head as the bank; 0: as it
        is. Raises ValueError where there is no such layer."""
        if layer == 0:
            return self
        if layer > len(self.projection_layers):
            raise ValueError(f"the projection head has {len(self.projection_layers)} layers")
        head = nn.Sequential(*self.projection_layers[:layer])
        train, test = (
            map_rows(head, features, self.bank.compute_device)
            for features in (self.bank.train, self.bank.test)
        )
        return replace(self, bank=replace(self.bank, train=train, test=test))


@dataclass(frozen=True)
class ImageInput:
    """What an `ImageEvaluator` measures."""

    subject: EncoderName
    encoder: nn.Module
    """In eval mode. An evaluator that trains it works on a copy."""
    images: EvaluationImages
    seed: int
    """The seed of the recipe."""
    projection_layers: Sequence[nn.Module] = ()
    """The layers of the projection head, in eval mode; see `FeatureInput`."""


@dataclass(frozen=True)
class OwnDataInput:
    """What an `OwnDataEvaluator` measures."""

    subject: EncoderName
    encoder: nn.Module
    """In eval mode. An evaluator that trains it works on a copy."""
    seed: int
    """The seed of the recipe."""
    device: torch.device
    """The training device, where the encoder is."""


@dataclass(frozen=True)
class PixelInput:
    """What an `OwnDataEvaluator` needs to measure raw pixels, which have no encoder."""

    seed: int
    """The seed of the recipe."""
    device: torch.device
    """The training device."""


class Batches(Protocol):
    """Batches of augmented training images; see `EvaluationImages.augmented`."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, on the training device."""


class EvaluationImages(ABC):
    """The images of both splits, as the encoder is evaluated on them or augmented:

        batches = images.augmented(augmentation, batch_size=256, rows=images.labelled("train"))
        for epoch in range(epochs):
            for batch in batches.epoch(epoch):
                with images.autocast():
                    logits = network(batch.views[0])
                ...                                        # loss against batch.labels
        for views in images.preprocessed("test"): ...      # in the order of images.labels("test")

    Batches are made as they are needed, on the training device; no data set is copied."""

    compute: Compute
    """Where evaluation computes, and how: every batch is on that device and in that layout; see
    `autocast`."""
    channels: int
    sample: SampleSpec = SampleSpec((None, None, None))
    """What they are: images, or other samples."""

    @property
    @abstractmethod
    def preprocess(self) -> Preprocess:
        """How the encoder's images are prepared: what `preprocessed` does."""

    class_names: Sequence[str]
    """Names of the classes; their numbers where the data names none. Empty without labels."""

    @property
    def device(self) -> torch.device:
        """The training device, where every batch is."""
        return self.compute.device

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @abstractmethod
    def num_images(self, split: Split) -> int:
        """Images of a split; 0 where there is no such split."""

    @abstractmethod
    def labels(self, split: Split) -> Tensor:
        """(N,) int64 on the CPU, negative where an image has none. Where an image turns out to be
        unreadable as it is first read, its label is replaced with it."""

    @abstractmethod
    def augmented(
        self, augmentation: Augmentation, *, batch_size: int, rows: Tensor | None = None
    ) -> Batches:
        """Training images through an augmentation. Order and views of an epoch follow from the
        seed of the recipe, the epoch and the positions of the images, and from nothing else; they
        are not those of the run. The last, partial batch of an epoch is left out.

        rows: (n,) positions of the images to use, default all; fewer than `batch_size` of them
        make one batch of all. Each batch has `labels` where there are any."""

    @abstractmethod
    def preprocessed(
        self, split: Split, rows: Tensor | None = None, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[Tensor]:
        """(B, C, S, S) float32 in [0, 1]: the images as the encoder is evaluated on them, once
        each and in order, the last batch partial. rows: (n,) positions, default all."""

    @abstractmethod
    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        """Two views of `num` training images (of all, where there are fewer) through the
        augmentation of the run: each (num, C, S, S) in [0, 1], row i of both from the same image.
        The seed of the recipe chooses images and views."""

    @abstractmethod
    def calibrate(self, network: nn.Module) -> None:
        """Gives the BatchNorm layers of a network the statistics with which every encoder is
        measured, in place: those of training images, prepared as for evaluation. For networks that
        an evaluator has trained, before it measures them; costs nothing without BatchNorm."""

    def labelled(self, split: Split) -> Tensor:
        """Positions of the images that have a label; the rows of a `FeatureBank`, where an
        evaluator requires labels, are these."""
        return (self.labels(split) >= 0).nonzero().squeeze(1)

    @torch.no_grad()
    def features(self, network: nn.Module, split: Split, rows: Tensor | None = None) -> Tensor:
        """(N, F) float32: what a network, in the mode that it is in, makes of the images of
        `preprocessed`. rows: (n,) positions, default all."""
        parts = []
        for images in self.preprocessed(split, rows):
            with self.autocast():
                parts.append(network(images).float())
        return torch.cat(parts)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of evaluation, float32 where that is `fp16`; losses belong outside."""
        # float16 would need a scaled loss, which every evaluator would have to know of.
        precision = self.compute.precision
        return autocast(self.device, "fp32" if precision == "fp16" else precision)
