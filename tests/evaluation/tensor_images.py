"""Images that are tensors, for tests of evaluators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sslkit.api import Augmentation, Batches, EvaluationImages, Preprocess, Split
from sslkit.evaluation.labels import numbered_classes
from sslkit.nn.batch_norm import calibrate_batch_norm
from sslkit.nn.compute import Compute


class TensorImages(EvaluationImages):
    """(N, C, S, S) in [0, 1] of each split, in batches of 16; without labels where none are given.
    Counts how often each split is read. Augmented views are the images and their mirror images;
    batch statistics are those of all training images."""

    def __init__(
        self,
        train: Tensor,
        test: Tensor | None = None,
        train_labels: Tensor | None = None,
        test_labels: Tensor | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.compute = Compute(torch.device("cpu"), "fp32", channels_last=False)
        self.channels = train.shape[1]
        self.images = {"train": train, "test": train[:0] if test is None else test}
        self._labels = {"train": train_labels, "test": test_labels}
        self.class_names = class_names or numbered_classes(train_labels, test_labels)
        self.passes = {"train": 0, "test": 0}

    @property
    def preprocess(self) -> Preprocess:
        size, channels = self.images["train"].shape[-1], self.channels
        return Preprocess(size, size, "bilinear", (0.0,) * channels, (1.0,) * channels)

    def num_images(self, split: Split) -> int:
        return len(self.images[split])

    def labels(self, split: Split) -> Tensor:
        labels = self._labels[split]
        return torch.full((self.num_images(split),), -1) if labels is None else labels

    def augmented(
        self, augmentation: Augmentation, *, batch_size: int, rows: Tensor | None = None
    ) -> Batches:
        raise NotImplementedError

    def preprocessed(
        self, split: Split, rows: Tensor | None = None, batch_size: int = 16
    ) -> Iterator[Tensor]:
        self.passes[split] += 1
        images = self.images[split] if rows is None else self.images[split][rows]
        yield from torch.split(images, batch_size)

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        return self.images["train"][:num], self.images["train"][:num].flip(3)

    def calibrate(self, network: nn.Module) -> None:
        batches = self.preprocessed("train")
        calibrate_batch_norm(network, batches, self.compute)
