"""Evaluators: what they are given, and what they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from pydantic import (
    PositiveInt,
)
from torch import Tensor, nn

from sslkit.nn.chunked import map_rows
from sslkit.nn.numerics import Precision, autocast

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .component import Component, ComponentConfig, Slot
from .data import Batch, DataSource
from .method import Apart
from .networks import Preprocess
from .views import Augmentation


@dataclass(frozen=True)
class FeatureBank:
    """Features of both splits, float32, in one place: on the training device, or in CPU memory
    where they are many."""

    train: Tensor  # (N_train, F)
    test: Tensor  # (N_test, F)
    train_labels: Tensor | None = None  # (N_train,) int64
    test_labels: Tensor | None = None  # (N_test,) int64
    class_names: Sequence[str] = ()
    device: torch.device | None = None
    """The training device, for protocols to move blocks of features to; None: where they are."""

    @property
    def compute_device(self) -> torch.device:
        """Where protocols should compute."""
        return self.device or self.train.device

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)


class Batches(Protocol):
    """Batches of augmented training images; see `EvaluationImages.augmented`."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, on the training device."""


class EvaluationImages(ABC):
    """The images of both splits, for protocols that send them through networks of their own:

        batches = images.augmented(augmentation, batch_size=256, rows=images.labelled("train"))
        for epoch in range(epochs):
            for batch in batches.epoch(epoch):
                with images.autocast():
                    logits = network(batch.views[0])
                ...                                        # loss against batch.labels
        for views in images.preprocessed("test"): ...      # in the order of images.labels("test")

    Batches are made as they are needed, on the training device; no data set is copied."""

    device: torch.device
    """The training device, where every batch is."""
    channels: int

    @property
    @abstractmethod
    def preprocess(self) -> Preprocess:
        """How the encoder's images are prepared: what `preprocessed` does."""

    precision: Precision
    """Number format of activations in evaluation; see `autocast`."""
    channels_last: bool
    """Whether the run keeps images and networks so; batches come in this layout."""

    @abstractmethod
    def labels(self, split: Literal["train", "test"]) -> Tensor | None:
        """(N,) int64 on the CPU, negative where an image has none; None without labels. Where an
        image turns out to be unreadable as it is first read, its label is replaced with it."""

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
        self, split: Literal["train", "test"], rows: Tensor | None = None, batch_size: int = 512
    ) -> Iterator[Tensor]:
        """(B, C, S, S) float32 in [0, 1]: the images as the encoder is evaluated on them, once
        each and in order, the last batch partial. rows: (n,) positions, default all."""

    @abstractmethod
    def calibrate(self, network: nn.Module) -> None:
        """Gives the BatchNorm layers of a network the statistics with which every encoder is
        measured, in place: those of training images, prepared as for evaluation. For networks that
        a protocol has trained, before it measures them; costs nothing without BatchNorm."""

    def labelled(self, split: Literal["train", "test"]) -> Tensor:
        """Positions of the images that have a label; the rows of `Subject.bank`, where a protocol
        requires labels, are these."""
        labels = self.labels(split)
        return torch.arange(0) if labels is None else (labels >= 0).nonzero().squeeze(1)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of evaluation, float32 where that is `fp16`; losses belong outside."""
        # float16 would need a scaled loss, which every protocol would have to know of.
        return autocast(self.device, "fp32" if self.precision == "fp16" else self.precision)


@dataclass(frozen=True)
class Subject:
    """What a protocol measures: the trained encoder, the untrained one, or raw pixels."""

    name: Literal["trained", "untrained", "pixels"]
    bank: FeatureBank
    seed: int
    """The seed of the recipe; protocols that draw (few-label) draw from it, equally for every
    subject, so that differences are paired."""
    encoder: nn.Module | None = None
    """In eval mode; None for pixels. A protocol that trains it works on a copy."""
    positive_pairs: Callable[[int], tuple[Tensor, Tensor]] | None = None
    """positive_pairs(n): encoder features of two augmented views of n images, each (n, F)."""
    embeddings: Callable[[], Mapping[str, Tensor]] | None = None
    """What `Method.embed` makes of the first batch of the run in training mode, without gradient;
    present for the trained encoder, during and at the end of a run."""
    untrained_embeddings: Callable[[], Mapping[str, Tensor]] | None = None
    """The same batch, through the method as it was before the first step."""
    must_not_collapse: Mapping[str, Apart] | None = None
    """What the method says of these embeddings; see `Method.must_not_collapse`."""
    images: EvaluationImages | None = None
    """The images themselves; None for raw pixels."""
    projection_layers: Sequence[nn.Module] = ()
    """The layers of the projection head, in eval mode; the first takes the encoder's features.
    Empty for pixels, and where the method gives none."""

    def projected(self, layer: int) -> Subject:
        """This subject with the output of layer `layer` of the projection head as its features; 0:
        as it is. Raises ValueError where there is no such layer."""
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
class ImageScores:
    """What each test image adds to a metric that is a mean over them."""

    values: Tensor
    """(M,) 0 to 1, in the order of the labelled test images; the mean over draws where there are
    several. NaN where an image does not count."""
    weights: Tensor | None = None
    """(M,) how much each counts, such as 1 / (images of its class); None: all alike."""


@dataclass(frozen=True)
class Resamples:
    """A metric that is no mean over test images, such as a ratio of sums, on test splits that were
    drawn from this one with replacement: `sslkit.nn.resampling.resample`."""

    values: Tensor
    """(R,) 0 to 1; NaN where a split has no value."""
    num_images: int
    """Test images that were drawn from."""


@dataclass(frozen=True)
class Evaluation:
    """What a protocol found."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """name -> value; logged as `eval/<protocol>/<name>` unless the name holds a slash. Names that
    begin with `top1` are accuracies, 0 to 1, and stand in the tables; so do `recall_at_...`,
    `map`, `nmi`, `ari`, `miou`, `pixel_accuracy` and `ap...`. A comparison shows these or, where
    there is none, the first metric."""
    draws: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """name -> the values whose mean the metric is, for intervals and paired differences."""
    per_image: Mapping[str, ImageScores] = field(default_factory=dict)
    """name -> the scores of the test images whose mean the metric is. From them come the interval
    over images, and that of the difference to a baseline, paired by image; where the metric has
    draws too, over both."""
    resamples: Mapping[str, Resamples] = field(default_factory=dict)
    """name -> the metric on resampled test splits, where it is no mean over images: for the same
    intervals."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    skipped: str | None = None
    """The reason, where nothing could be measured."""
    warning: str | None = None
    """What is wrong with the training, in one line, for the user to see."""
    notes: Sequence[str] = ()
    """What a reader must know beside the numbers, one line each: what was left out, and why."""
    stop: str | None = None
    """Why training should end here, in one line: the run then ends with a checkpoint."""


class EvaluatorConfig(ComponentConfig):
    """Fields that every protocol has."""

    every_epochs: PositiveInt | None = None
    """Also run after every so many epochs. It always runs after the last."""
    data: Slot[DataSource] | None = None
    """A data source to measure on, both splits of it, in place of the recipe's: a labelled set that
    watches a training without labels. Batch statistics stay those of the training images."""


class Evaluator(Component, ABC):
    """An evaluation protocol. Constructed as `cls(config)`."""

    kind = "evaluator"
    Config: ClassVar[type[ComponentConfig]] = EvaluatorConfig
    requires_labels: ClassVar[bool] = True
    baselines: ClassVar[bool] = True
    """True: at the end it also measures raw pixels and the untrained encoder."""
    uses_train: ClassVar[bool] = True
    """False: it works on the test split where there is one. The features of the training split may
    then be missing (no rows), which saves most of the time where nothing else needs them."""
    uses_features: bool = True
    """False: it works on `Subject.images` alone, or on data of its own. `Subject.bank` may then be
    empty, and raw pixels are no baseline of it, unless the data is its own. It may follow from the
    configuration: set it in `__init__`."""
    own_data: ClassVar[bool] = False
    """True: it measures on data that its configuration names, and not on that of the run."""
    pixel_baseline: bool = True
    """False: the untrained encoder is the only baseline."""
    projection_layer: int = 0
    """The highest layer of the projection head that it needs; a run whose method has fewer is
    refused before its first step."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def evaluate(self, subject: Subject) -> Evaluation: ...
