"""Semantic segmentation by a linear classifier of positions on frozen feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sslkit.api import (
    DataSource,
    Evaluation,
    EvaluatorConfig,
    ImageReader,
    NoFeatureMapsError,
    OwnDataEvaluator,
    OwnDataInput,
    PixelInput,
    Resamples,
    RunFacts,
    Slot,
)
from sslkit.builtin.evaluators.dense_data import (
    AnnotatedData,
    class_bars,
    data_problems,
    open_annotated,
)
from sslkit.builtin.evaluators.encoder_maps import (
    Source,
    check_images,
    device_of,
    with_feature_maps,
)
from sslkit.errors import DataError, SSLKitError, first_line_of
from sslkit.nn.logistic_regression import LinearClassifiers
from sslkit.nn.resampling import resample
from sslkit.nn.segmentation import (
    class_counts,
    class_fractions,
    fit_class_fractions,
    intersection_over_union,
    mean_intersection_over_union,
    pixel_accuracy,
    pixel_confusion,
    scores_of_counts,
    soft_confusion,
)
from sslkit.randomness import SampleRandom, random_subset

_BLOCK_ELEMENTS = 1 << 26
"""Features that a pass moves to the device at once (256 MiB)."""
_DEVICE_BYTES = 1 << 31
"""Features up to this size stay on the device, others in CPU memory. Shapes alone decide."""
_TOLERANCE = 1e-4
_PIXELS_SIZE = 224


class Segmentation(OwnDataEvaluator):
    """A linear classifier of every position of a frozen feature map (a 1x1 convolution), upsampled
    to the size of the mask: what the features know of where things are. It brings annotated `data`
    of its own. Images are stretched to `size` x `size`; nothing is augmented. The classifier is a
    multinomial logistic regression by full-batch L-BFGS, each position's target being the part of
    its pixels that has each class; the penalty is chosen on training images that are held out for
    it. Logits are upsampled bilinearly to each mask as it is, and every pixel counts, but those
    that are to be ignored (255). Deterministic by the seed.

    Metrics over all pixels of the test split: `miou`, the mean over classes of intersection over
    union (classes that neither occur nor are predicted have no part in it); `pixel_accuracy`; `l2`,
    the penalty chosen, and `selection_miou`, its score on the held-out positions.

    Baselines: the untrained encoder, and patches of raw pixels in the place of features.

    Figure: `classes`, the intersection over union of each class."""

    baselines = ("pixels", "untrained")

    class Config(EvaluatorConfig):
        data: Slot[DataSource]
        """Images with masks, with a training and a test split: `{name: scenes}`, `{name: voc, task:
        segmentation, root: ...}`, or a plugin's."""
        stage: int = -1
        """Which of the encoder's feature maps: for a ResNet 0 to 4, for a ViT its blocks; from the
        end where negative."""
        size: Annotated[int, Field(ge=16)] | None = None
        """Side that images are stretched to, pixels; null: the encoder's own. ViTs take no other.
        Twice the size gives a map of twice the side."""
        l2: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            0.1, 0.01, 1e-3, 1e-4, 1e-5,
        )  # fmt: skip
        """Penalties to choose from: l2 / 2 * squared norm of the weights, beside the mean cross
        entropy of the pixels. Equal scores go to the strongest."""
        selection_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
        """Part of the training images, at least one, that is held out to choose `l2`. The chosen
        one is then fitted on all of them."""
        num_positions: PositiveInt = 1 << 18
        """Positions of all training maps together that the classifier is fitted on, the same number
        of each image, chosen by the seed; all where there are fewer. It bounds memory."""
        max_iterations: PositiveInt = 100
        """L-BFGS iterations for each penalty, at most."""
        pixel_patch: PositiveInt = 8
        """Side of the patches that are the features of the raw pixels."""

    config: Config

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from data_problems(config.data, "masks", facts)

    def evaluate(self, given: OwnDataInput) -> Evaluation:
        return self._evaluate(lambda: self._encoder_source(given.encoder), given.seed)

    def evaluate_pixels(self, given: PixelInput) -> Evaluation:
        return self._evaluate(lambda: self._pixel_source(given.device), given.seed)

    @cached_property
    def _data(self) -> AnnotatedData:
        return open_annotated(self.config.data, "masks")

    def _evaluate(self, source: Callable[[], Source], seed: int) -> Evaluation:
        try:
            return self._measure(source(), seed)
        except (SSLKitError, NoFeatureMapsError) as error:
            return Evaluation(skipped=first_line_of(error))

    def _measure(self, source: Source, seed: int) -> Evaluation:
        data = self._data
        positions = take_positions(
            source, data.train, len(data.classes), self.config.num_positions, seed
        )
        if len(positions.present) < 2:
            return Evaluation(skipped="needs two training images with pixels of known classes")
        mean, std = positions.standardise_()
        l2, selected, start = self._select(positions, seed)
        classifier = self._fit(positions, [l2], start)
        weight = classifier.weight[0] / std
        bias = classifier.bias[0] - weight @ mean
        table, counts = score(source, data.test, weight, bias)
        if not len(counts):
            return Evaluation(skipped="no test mask has a pixel of a known class")
        return Evaluation(
            metrics={
                "miou": mean_intersection_over_union(table),
                "pixel_accuracy": pixel_accuracy(table),
                "l2": l2,
                "selection_miou": selected,
            },
            resamples=resampled_scores(counts, seed),
            figures={
                "classes": class_bars(
                    data.classes, intersection_over_union(table).tolist(), "intersection over union"
                )
            },
        )

    def _encoder_source(self, encoder: nn.Module) -> Source:
        config, backbone = self.config, with_feature_maps(encoder)
        size = config.size or backbone.preprocess.size
        check_images(backbone, [config.stage], self._data.train.channels, (size, size))
        return Source(
            lambda x: backbone.feature_maps(x, [config.stage])[0], size, device_of(backbone)
        )

    def _pixel_source(self, device: torch.device) -> Source:
        config, sides = self.config, self._data.train.image_size
        size = config.size or (min(sides) if sides else _PIXELS_SIZE)
        patch = config.pixel_patch
        size = max(patch, size // patch * patch)
        return Source(partial(F.pixel_unshuffle, downscale_factor=patch), size, device)

    def _select(self, positions: Positions, seed: int) -> tuple[float, float, LinearClassifiers]:
        """The best penalty, its score on the held-out positions, its classifier."""
        present = positions.present
        held = max(1, min(round(self.config.selection_fraction * len(present)), len(present) - 1))
        chosen = present[random_subset(seed, "segmentation/selection", len(present), held)]
        is_held = torch.isin(positions.images, chosen)
        penalties = sorted(self.config.l2, reverse=True)
        fitting, held_out = positions.only(~is_held), positions.only(is_held)
        classifiers = self._fit(fitting, penalties)
        scores = [
            mean_intersection_over_union(held_out.confusion(classifiers, problem))
            for problem in range(len(penalties))
        ]
        best = max(range(len(penalties)), key=lambda p: (scores[p] == scores[p], scores[p], -p))
        start = LinearClassifiers(classifiers.weight[best, None], classifiers.bias[best, None])
        return penalties[best], scores[best], start

    def _fit(
        self, positions: Positions, l2: list[float], start: LinearClassifiers | None = None
    ) -> LinearClassifiers:
        return fit_class_fractions(
            positions.blocks,
            l2=l2,
            start=start,
            max_iterations=self.config.max_iterations,
            tolerance=_TOLERANCE,
        )


# --- Positions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """Positions of the training maps, N of them, or some of these."""

    features: Tensor  # (N, F) float32
    fractions: Tensor  # (N, C) float32, see `class_fractions`
    images: Tensor  # (N,) int64 on the CPU: position of the image
    device: torch.device
    """Where classifiers are computed."""
    rows: Tensor | None = None
    """(n,) which of them, on the CPU; None: all."""

    @property
    def present(self) -> Tensor:
        """The images that have a position, ascending."""
        images: Tensor = self.images.unique()  # type: ignore[no-untyped-call]
        return images

    def standardise_(self) -> tuple[Tensor, Tensor]:
        """Brings the features to mean 0 and variance 1, in place; returns what they were, on the
        computing device. Features that hardly vary are not blown up. Raises DataError where they
        are not finite."""
        mean = self.features.mean(dim=0)
        std = self.features.std(dim=0, correction=0)
        if not bool((mean + std).isfinite().all()):
            raise DataError("the feature maps are not finite")
        std = std.clamp_min(max(1e-3 * float(std.max()), 1e-12))
        self.features.sub_(mean).div_(std)
        return mean.to(self.device), std.to(self.device)

    def only(self, chosen: Tensor) -> Positions:
        """Some of all positions, not copied. chosen: (N,) bool on the CPU."""
        return replace(self, rows=chosen.nonzero().squeeze(1))

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and fractions, block by block, on the computing device."""
        count = len(self.features if self.rows is None else self.rows)
        size = max(1, _BLOCK_ELEMENTS // self.features.shape[1])
        for start in range(0, count, size):
            part: slice | Tensor = slice(start, start + size)
            if self.rows is not None:
                part = self.rows[part].to(self.features.device)
            yield self.features[part].to(self.device), self.fractions[part].to(self.device)

    def confusion(self, classifiers: LinearClassifiers, problem: int) -> Tensor:
        """See `soft_confusion`."""
        tables = [
            soft_confusion(t.cpu(), classifiers.predict(problem, x).cpu()) for x, t in self.blocks()
        ]
        return torch.stack(tables).sum(dim=0)


def take_positions(
    source: Source, reader: ImageReader, classes: int, most: int, seed: int
) -> Positions:
    """At most `most` positions of the training images, those with a known pixel, the same number of
    each image (one, where there are more images than that)."""
    each = max(1, most // len(reader))
    features = fractions = torch.empty(0)
    images = torch.empty(0, dtype=torch.int64)
    first = filled = 0
    for maps, masks in source.batches(reader):
        grid = (maps.shape[-2], maps.shape[-1])
        if first == 0:
            rows = len(reader) * min(each, grid[0] * grid[1])
            fits = 4 * rows * maps.shape[1] <= _DEVICE_BYTES
            where = source.device if fits else torch.device("cpu")
            features = torch.empty(rows, maps.shape[1], device=where)
            fractions = torch.empty(rows, classes, device=where)
            images = torch.empty(rows, dtype=torch.int64)
        numbers = torch.arange(first, first + len(maps))
        first += len(maps)
        chosen = _drawn(numbers, grid[0] * grid[1], each, seed)
        for number, row, found, mask in zip(
            numbers.tolist(), chosen.to(maps.device), maps.flatten(2).mT, masks, strict=True
        ):
            target = class_fractions(mask, grid, classes)[row]
            known = target.sum(dim=1) > 0.0
            part = slice(filled, filled + int(known.sum()))
            features[part].copy_(found[row][known])
            fractions[part].copy_(target[known])
            images[part] = number
            filled = part.stop
    return Positions(features[:filled], fractions[:filled], images[:filled], source.device)


def _drawn(images: Tensor, positions: int, each: int, seed: int) -> Tensor:
    """(B, min(each, positions)) ascending positions that depend on the seed and the image alone."""
    if positions <= each:
        return torch.arange(positions).expand(len(images), -1)
    order = SampleRandom(seed, "segmentation", 0, images).permutation("positions", positions)
    return order[:, :each].sort(dim=1).values


def score(
    source: Source, reader: ImageReader, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The confusion of all test pixels, and the `class_counts` (M, 3, C) of the M test images with
    a known pixel. weight: (C, F), bias: (C,)."""
    classes = len(bias)
    counts = []
    table = torch.zeros(classes, classes, dtype=torch.int64)
    kernel = weight[:, :, None, None]
    for maps, masks in source.batches(reader):
        for logits, mask in zip(F.conv2d(maps, kernel, bias), masks, strict=True):
            full = F.interpolate(
                logits[None], tuple(mask.shape), mode="bilinear", align_corners=False
            )
            of_image = pixel_confusion(mask, full[0].argmax(dim=0), classes).cpu()
            table += of_image
            counts.append(class_counts(of_image))
    by_image = torch.stack(counts)
    return table, by_image[by_image.sum(dim=(1, 2)) > 0.0]


def resampled_scores(counts: Tensor, seed: int) -> dict[str, Resamples]:
    """Both scores on resampled test splits; counts: (M, 3, C)."""
    images = len(counts)

    def scores(drawn: Tensor) -> Tensor:
        sums = (drawn @ counts.flatten(1)).view(-1, *counts.shape[1:])
        return torch.stack(scores_of_counts(sums), dim=1)

    values = resample(scores, images, seed, width=counts[0].numel())
    names = ("miou", "pixel_accuracy")
    return {name: Resamples(values[:, i], images) for i, name in enumerate(names)}
