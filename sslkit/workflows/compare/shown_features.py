"""What the encoders of a comparison make of the same images: those of a map, queries, and a
gallery in which neighbours are searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.api import Backbone, DataSourceConfig, SplitReader, largest_view
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import calibrate, evaluation_batches
from sslkit.data.splits import open_splits
from sslkit.errors import DataError
from sslkit.evaluation.features import count_not_finite, extract
from sslkit.experiment.encoder import load_encoder
from sslkit.experiment.networks import (
    build_backbone,
    make_for_encoder,
    missing_untrained,
    without_starting_weights,
)
from sslkit.experiment.resolve import evaluation_compute
from sslkit.nn.compute import Compute
from sslkit.randomness import random_subset, seeded, shuffled
from sslkit.recipe import Recipe
from sslkit.report.comparison.gallery import Thumbnail, choose_queries, thumbnail
from sslkit.report.comparison.side_by_side import RunRecord
from sslkit.report.maps import choose_images, class_name
from sslkit.runs.environment_file import read_environment
from sslkit.workflows.pack import available_cores

_BATCH = 256
_SEED = 0
"""Seed of the choice of images: the same in every comparison."""
_QUERIES = 8
_GALLERY = 4000
"""Training images among which neighbours are searched, at most."""


class ShownImages:
    """The images that every arm is asked about, of the test split where there is one."""

    def __init__(self, recipe: Recipe) -> None:
        """Opens the data of a recipe. Raises RecipeError and DataError."""
        splits = open_splits(recipe.data)
        test = splits.test
        self.train = _open(recipe, splits.train)
        self.shown = self.train if test is None else _open(recipe, test)
        self.split = "training" if test is None else "test"
        labels, names = self.shown.labels, self.shown.class_names
        self.map = choose_images(len(self.shown), labels, names, seed=_SEED)
        self.queries = choose_queries(
            labels, len(self.shown), 0 if test is None else _QUERIES, _SEED
        )
        chosen = random_subset(_SEED, "neighbours/gallery", len(self.train), _GALLERY)
        self.gallery = shuffled(chosen, _SEED)

    def queries_shown(self) -> list[Thumbnail]:
        """The queries as small pictures."""
        return [_thumbnail(self.shown, row) for row in self.queries.tolist()]

    def gallery_shown(self, places: Sequence[int]) -> dict[int, Thumbnail]:
        """Place in the gallery -> its image as a small picture."""
        return {place: _thumbnail(self.train, int(self.gallery[place])) for place in places}


@dataclass(frozen=True)
class EncoderFeatures:
    """What one encoder makes of the images."""

    subject: str
    map: Tensor  # (M, F)
    queries: Tensor  # (Q, F)
    gallery: Tensor  # (N, F)


def features_of(
    subject: str, record: RunRecord, images: ShownImages, *, trained: bool, with_gallery: bool
) -> EncoderFeatures:
    """Features by the encoder of a run, with the batch statistics that it is exported with, or by
    the same network with random weights and statistics of the same images. In float32, on the
    device of the run where it is here.

    Raises DataError where features are not finite, and what loading an encoder raises."""
    device = evaluation_compute(record.recipe).device
    compute = Compute(device, "fp32", channels_last=False)
    if trained and record.images_seen:
        encoder = load_encoder(record.path).to(device)
    elif trained:  # weights that were only measured
        encoder = _measured(record.recipe, images, trained=True).to(device)
    else:
        encoder = _untrained(record, images).to(device)
        train, preparation = images.train, encoder.preparation
        calibrate(encoder, train, preparation, seed=record.seed, compute=compute)

    def features(store: CachedSplit, rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.empty(0, encoder.num_features)
        batches = _batches(store, encoder, rows, device)
        found = extract(encoder, batches, compute).cpu()
        if broken := count_not_finite(found):
            raise DataError(f"features of {broken} of {len(rows)} images are not finite")
        return found

    nothing = images.gallery[:0]
    return EncoderFeatures(
        subject,
        features(images.shown, images.map.rows),
        features(images.shown, images.queries if with_gallery else nothing),
        features(images.train, images.gallery if with_gallery else nothing),
    )


def _untrained(record: RunRecord, images: ShownImages) -> Backbone:
    """The network of a run or of measured weights, with random weights."""
    if not record.images_seen:
        return _measured(record.recipe, images, trained=False)
    facts = read_environment(record.path).facts
    if reason := missing_untrained(record.recipe, facts):
        raise DataError(f"no untrained encoder: {reason}")
    return make_for_encoder(without_starting_weights(record.recipe), facts).encoder


def _measured(recipe: Recipe, images: ShownImages, *, trained: bool) -> Backbone:
    """The network with the weights that the recipe names, or as it is without them."""
    chosen = recipe if trained else without_starting_weights(recipe)
    views = recipe.augmentation.build().views
    with seeded(recipe.seed, "initialisation"):
        encoder = build_backbone(chosen.backbone, largest_view(views, images.train.channels))
    return encoder.eval()


def _batches(
    store: CachedSplit, encoder: Backbone, rows: Tensor, device: torch.device
) -> Iterator[Tensor]:
    return evaluation_batches(store, encoder.preparation, _BATCH, device, rows)


def _open(recipe: Recipe, reader: SplitReader) -> CachedSplit:
    if not reader.sample.is_image:
        raise DataError(f"the samples are {reader.sample}, which nothing here draws")
    config = recipe.data.config
    assert isinstance(config, DataSourceConfig)
    return CachedSplit(
        reader,
        max_corrupt_fraction=config.max_corrupt_fraction,
        seed=recipe.seed,
        num_threads=available_cores(),  # no effect on results
        resident_bytes=0,  # only some of the images are read
    )


def _thumbnail(store: CachedSplit, row: int) -> Thumbnail:
    image = store.read(row)  # first: an unreadable image takes the label of the one in its place
    label = -1 if store.labels is None else int(store.labels[row])
    if label < 0:
        return thumbnail(image, None, "")
    return thumbnail(image, label, class_name(store.class_names, label))
