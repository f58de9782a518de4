"""Object detection by a detector that is fine-tuned from a copy of the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import (
    Backbone,
    Boxes,
    DataSource,
    Evaluation,
    EvaluatorConfig,
    HasBoxes,
    ImageReader,
    NoFeatureMapsError,
    OwnDataEvaluator,
    OwnDataInput,
    Resamples,
    RunFacts,
    Slot,
)
from sslkit.builtin.evaluators.dense_data import (
    AnnotatedData,
    annotated_images,
    class_bars,
    data_problems,
    open_annotated,
    read_image,
)
from sslkit.builtin.evaluators.detector import Pyramid, faster_rcnn, pyramid_stages
from sslkit.builtin.evaluators.encoder_maps import check_images, device_of, with_feature_maps
from sslkit.errors import DataError, SSLKitError, TrainingError, first_line_of
from sslkit.nn.average_precision import THRESHOLDS, Detections, Matches
from sslkit.nn.resampling import resample
from sslkit.nn.supervised import SupervisedTraining
from sslkit.randomness import SampleRandom, seeded

_DROPS = (3 / 4, 11 / 12)
"""Parts of the training after which the learning rate falls to a tenth: 18,000 and 22,000 of 24,000
steps (He et al. 2019)."""
_MOMENTUM = 0.9
_MOST_OBJECTS = 1000
"""Objects of an image: each is held against some 270,000 anchors, which takes 8 MB."""

Sample = tuple[Tensor, dict[str, Tensor]]
"""An image (C, H, W) in [0, 1], and its `boxes` (M, 4) and `labels` (M,) from 1 on."""


class Detection(OwnDataEvaluator):
    """Faster R-CNN with a feature pyramid (torchvision's, Ren et al. 2015, arXiv:1506.01497, and
    Lin et al. 2017, arXiv:1612.03144), all of whose layers are trained from a copy of the encoder:
    what the features are worth as a start. It brings annotated `data` of its own. The defaults
    are the schedule of He et al. 2019 (MoCo, arXiv:1911.05722) for Pascal VOC, which has another
    head (C4) there. Augmentation: horizontal flips, and one of `sizes` for each image. Order and
    flips follow from the seed; on a GPU, gradients of RoIAlign are summed in any order, so results
    differ by a little.

    Metrics by COCO's definition, on the test split after the last step: `ap`, average precision
    averaged over overlaps of 0.50 to 0.95 and over the classes that occur; `ap50` and `ap75`, at
    one overlap.

    Baseline: the untrained encoder, fine-tuned alike. There is none from raw pixels.

    Figure: `classes`, `ap` of each class."""

    class Config(EvaluatorConfig):
        data: Slot[DataSource]
        """Images with boxes, with a training and a test split: `{name: scenes}`, `{name: voc, task:
        detection, root: ...}`, `{name: coco, root: ...}`, or a plugin's."""
        steps: PositiveInt = 24_000
        """Training steps."""
        batch_size: PositiveInt = 16
        """Images of a step."""
        lr: PositiveFloat = 0.02
        """Peak learning rate of SGD with momentum 0.9; a tenth of it after 3/4 of the steps, a
        hundredth after 11/12."""
        warmup_steps: NonNegativeInt = 100
        """Steps in which the learning rate rises from 0 to its peak."""
        weight_decay: NonNegativeFloat = 1e-4
        """Weight decay of all parameters."""
        sizes: Annotated[tuple[Annotated[int, Field(ge=16)], ...], Field(min_length=1)] = (
            480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800,
        )  # fmt: skip
        """Lengths of the shorter side that training draws from, pixels. The last one is taken for
        testing."""
        max_size: PositiveInt = 1333
        """Greatest length of the longer side, pixels."""
        stages: tuple[int, ...] | None = None
        """The encoder's feature maps that the pyramid is built on, of growing stride; null: the
        last one of each stride, at most the four coarsest."""
        batch_norm: Literal["train", "frozen"] = "train"
        """The encoder's BatchNorm: `train` goes on with the statistics of batches; `frozen` keeps
        statistics and weights as they are, for batches of a few images."""
        pyramid_width: PositiveInt = 256
        """Channels of the feature pyramid."""
        head_width: PositiveInt = 1024
        """Width of the two layers of the box head."""
        untrained: bool = True
        """Also fine-tunes the untrained encoder, which takes as long once more."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.untrained:
            self.baselines = ()

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if config.max_size < max(config.sizes):
            yield (
                "max_size",
                f"{config.max_size} is below a length of the shorter side, {max(config.sizes)}; "
                "take at least that",
            )
        yield from data_problems(config.data, "boxes", facts)

    def evaluate(self, given: OwnDataInput) -> Evaluation:
        try:
            return self._evaluate(with_feature_maps(given.encoder), given.seed)
        except (SSLKitError, NoFeatureMapsError) as error:
            return Evaluation(skipped=first_line_of(error))

    @cached_property
    def _data(self) -> AnnotatedData:
        return open_annotated(self.config.data, "boxes")

    @cached_property
    def _truths(self) -> tuple[list[Boxes], list[Boxes]]:
        """The boxes of both splits: bad annotations are found before hours of training."""
        return _all_boxes(self._data.train), _all_boxes(self._data.test)

    def _evaluate(self, encoder: Backbone, seed: int) -> Evaluation:
        config, data = self.config, self._data
        chosen = config.stages
        stages = pyramid_stages(encoder.feature_stages) if chosen is None else list(chosen)
        side = config.sizes[-1]
        check_images(encoder, stages, data.train.channels, (side, side + 32))
        train, test = self._truths
        rows = [i for i, boxes in enumerate(train) if (~boxes.crowd).any()]
        if not rows:
            return Evaluation(skipped="no training image has an object")
        if not any((~(boxes.crowd | boxes.difficult)).any() for boxes in test):
            return Evaluation(skipped="no test image has an object to find")
        device = device_of(encoder)
        with seeded(seed, "detection"):
            frozen = config.batch_norm == "frozen"
            detector = faster_rcnn(
                Pyramid(encoder, stages, config.pyramid_width, frozen),
                num_classes=len(data.classes),
                channels=data.train.channels,
                sizes=config.sizes,
                max_size=config.max_size,
                head_width=config.head_width,
            ).to(device)
            self._train(detector, rows, seed, device)
        found = detections(detector, data.test, device)
        matches = Matches.of(test, found, len(data.classes))
        scored = _scored(matches.average_precision(), data.classes)
        return replace(scored, resamples=_resampled(matches, len(test), seed))

    def _train(self, detector: Any, rows: Sequence[int], seed: int, device: torch.device) -> None:
        """Fine-tunes in place. Raises TrainingError where the loss is not finite, and DataError."""
        config, reader = self.config, self._data.train
        optimizer = torch.optim.SGD(
            [p for p in detector.parameters() if p.requires_grad],
            lr=config.lr,
            momentum=_MOMENTUM,
            weight_decay=config.weight_decay,
        )

        def read(drawn: tuple[int, bool]) -> tuple[Tensor, int, bool]:
            return read_image(reader, drawn[0]), *drawn

        def loss(batch: Sequence[tuple[Tensor, int, bool]]) -> Tensor:
            truths = self._truths[0]
            return _loss(detector, [sample(x.to(device), truths[i], flip) for x, i, flip in batch])

        def set_rate(step: int) -> None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)

        training = SupervisedTraining(optimizer, loss, set_rate)
        drawn = draws(rows, config.steps * config.batch_size, seed)
        detector.train()
        with closing(annotated_images(read, drawn)) as images:
            batches = (list(islice(images, config.batch_size)) for _ in range(config.steps))
            for value in training.steps(batches):
                if not bool(value.isfinite()):
                    raise TrainingError(
                        f"the loss is {float(value)} at step {training.finished - 1}; lower lr or "
                        "raise warmup_steps"
                    )


def _loss(detector: Any, batch: Sequence[Sample]) -> Tensor:
    images, targets = zip(*batch, strict=True)
    return torch.stack(list(detector(list(images), list(targets)).values())).sum()


def learning_rate(config: Detection.Config, step: int) -> float:
    """The learning rate of the step that follows `step` finished ones."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    drops = sum(step >= part * config.steps for part in _DROPS)
    return float(config.lr * warm * 0.1**drops)


def draws(rows: Sequence[int], count: int, seed: int) -> Iterator[tuple[int, bool]]:
    """`count` training images and whether each is flipped: epoch after epoch, every image once an
    epoch, by the seed, the epoch and the position of the image alone."""
    given, epoch = torch.tensor(rows), 0
    while count > 0:
        random = SampleRandom(seed, "detection", epoch, given)
        order = random.bits("order", 1)[:, 0].argsort(stable=True)[:count]
        flips = random.integers("flip", 1, 2)[:, 0]
        yield from zip(given[order].tolist(), flips[order].bool().tolist(), strict=True)
        count, epoch = count - len(order), epoch + 1


def _all_boxes(reader: ImageReader) -> list[Boxes]:
    """The boxes of every image. Raises DataError for an image with more than can be matched."""
    assert isinstance(reader, HasBoxes)
    found = list(annotated_images(reader.boxes, range(len(reader))))
    for index, boxes in enumerate(found):
        if len(boxes) > _MOST_OBJECTS:
            raise DataError(
                f"{reader.describe(index)}: has {len(boxes):,} objects, and at most "
                f"{_MOST_OBJECTS:,} are matched; cut the image, or leave it out of its list"
            )
    return found


def detections(detector: Any, reader: ImageReader, device: torch.device) -> list[Detections]:
    """What a detector finds in every image."""
    detector.eval()
    found = []
    for image in annotated_images(lambda index: read_image(reader, index), range(len(reader))):
        with torch.no_grad():
            (output,) = detector([image.to(device) / 255.0])
        corners, labels, scores = (
            output[name].cpu().numpy() for name in ("boxes", "labels", "scores")
        )
        found.append(Detections(corners, labels.astype(np.int64) - 1, scores))
    return found


def sample(pixels: Tensor, boxes: Boxes, flip: bool) -> Sample:
    """An image (C, H, W) uint8 and its objects as the detector learns them: mirrored or not, and
    without crowds, which have no box of their own."""
    image = pixels / 255.0
    corners = torch.from_numpy(boxes.corners[~boxes.crowd]).to(image.device)
    if flip:
        image = image.flip(-1)
        left, top, right, bottom = corners.unbind(1)
        width = image.shape[-1]
        corners = torch.stack([width - right, top, width - left, bottom], dim=1)
    labels = torch.from_numpy(boxes.labels[~boxes.crowd]).to(image.device) + 1
    return image, {"boxes": corners, "labels": labels}


def _scored(table: np.ndarray[Any, np.dtype[np.float64]], classes: Sequence[str]) -> Evaluation:
    """table: (T, C), see `average_precision`."""
    occur = ~np.isnan(table[0])
    means = table[:, occur].mean(axis=1)
    at = {
        round(100 * threshold): float(ap) for threshold, ap in zip(THRESHOLDS, means, strict=True)
    }
    return Evaluation(
        metrics={"ap": float(means.mean()), "ap50": at[50], "ap75": at[75]},
        figures={"classes": class_bars(classes, table.mean(axis=0).tolist(), "average precision")},
    )


def _resampled(matches: Matches, num_images: int, seed: int) -> dict[str, Resamples]:
    """The metrics on resampled test splits."""
    columns = {round(100 * threshold): t for t, threshold in enumerate(THRESHOLDS)}

    def scores(counts: Tensor) -> Tensor:
        means = matches.drawn(counts).nanmean(dim=2)
        return torch.stack([means.mean(dim=1), means[:, columns[50]], means[:, columns[75]]], dim=1)

    values = resample(scores, num_images, seed, width=matches.width)
    names = ("ap", "ap50", "ap75")
    return {name: Resamples(values[:, i], num_images) for i, name in enumerate(names)}
