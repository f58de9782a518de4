"""What a run has of its data, for programs that train and measure by themselves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor, nn

from sslkit.api import (
    Augmentation,
    Backbone,
    DataSource,
    DataSourceConfig,
    FeatureBank,
    Preprocess,
    Slot,
    SplitReader,
)
from sslkit.api.evaluation_inputs import EVALUATION_BATCH
from sslkit.api.views import refuse_misfit
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import calibrate, evaluation_batches
from sslkit.data.examine import examine
from sslkit.data.loader import TrainLoader
from sslkit.data.sampler import sampler_of
from sslkit.data.splits import Splits, notes_of, open_splits, with_classes
from sslkit.data.views import view_maker
from sslkit.errors import DataError
from sslkit.evaluation.features import BankSpec, extract
from sslkit.nn.batch_norm import kept_batch_statistics
from sslkit.nn.compute import Compute
from sslkit.nn.modes import frozen
from sslkit.parallel.division import Division
from sslkit.parallel.world import OneProcess, World


def open_data(data: Slot[DataSource]) -> tuple[SplitReader, SplitReader | None]:
    """See `sslkit.open_data`."""
    splits = open_splits(data)
    _warn(notes_of(splits))
    return splits.train, splits.test


def load_batches(
    reader: SplitReader,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_threads: int = 0,
    world: World | None = None,
) -> TrainLoader:
    """See `sslkit.load_batches`."""
    refuse_misfit(augmentation, reader.sample, len(reader))
    world = world or OneProcess()
    store = _store(reader, seed, num_threads, world)
    return TrainLoader(
        view_maker(store, augmentation, torch.device(device)),
        sampler_of(reader, batch_size, seed),
        seed=seed,
        num_threads=num_threads,
        division=Division.of(batch_size, None, world.rank, world.size),
    )


def take_features(
    encoder: nn.Module,
    train: SplitReader,
    test: SplitReader,
    *,
    preprocess: Preprocess | None = None,
    calibrated: bool = False,
    seed: int = 0,
    num_threads: int = 0,
) -> FeatureBank:
    """See `sslkit.take_features`."""
    if preprocess is None and isinstance(encoder, Backbone):
        preprocess = encoder.preparation
    place = next((each.device for each in encoder.parameters()), torch.device("cpu"))
    compute = Compute(place, "fp32", channels_last=False)
    stores = _splits(train, test).map(partial(_store, seed=seed, num_threads=num_threads))
    assert stores.test is not None
    _warn(examine(stores))
    together = len(stores.train) + len(stores.test)
    _check_encoder(encoder, stores.train, preprocess, compute)

    def features(store: CachedSplit) -> Tensor:
        batches = evaluation_batches(store, preprocess, EVALUATION_BATCH, place)
        with closing(batches):
            return extract(encoder, batches, compute, BankSpec(len(store), together))

    with kept_batch_statistics(encoder):
        if calibrated:
            calibrate(encoder, stores.train, preprocess, seed=seed, compute=compute)
        rows = stores.map(features)
    assert rows.test is not None
    return FeatureBank(
        rows.train,
        rows.test,
        _labels(stores.train, rows.train),
        _labels(stores.test, rows.test),
        stores.train.class_names or stores.test.class_names or (),
        place,
    )


def _check_encoder(
    encoder: nn.Module, store: CachedSplit, preprocess: Preprocess | None, compute: Compute
) -> None:
    """Raises DataError for one that gives no rows of numbers, before all images are encoded."""
    if preprocess is None and store.sample.sides is None:
        raise DataError(
            "images: they have several sizes, and an encoder takes one; say how they are resized "
            "and cropped: preprocess=sslkit.api.Preprocess(size=224, resize=256)"
        )
    first = torch.arange(min(2, len(store)))
    with closing(evaluation_batches(store, preprocess, 2, compute.device, first)) as batches:
        for images in batches:
            with frozen(encoder):
                found = encoder(compute.layout(images))
            shape = tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
            if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
                raise DataError(
                    f"the encoder gives {shape} for an image; valid is one row of numbers, (B, F) "
                    "of a batch: add a pooling layer or nn.Flatten()"
                )


def _splits(train: SplitReader, test: SplitReader) -> Splits[SplitReader]:
    """Both, their labels checked and as positions in the classes. Raises DataError where they name
    other classes."""
    named = train.class_names, test.class_names
    if None not in named and list(named[0] or ()) != list(named[1] or ()):
        raise DataError(
            f"labels: the training images name {len(named[0] or ())} classes and the test images "
            f"{len(named[1] or ())}, not the same in the same order; give both the same class_names"
        )
    return with_classes(Splits(train, test))


def _warn(notes: Sequence[str]) -> None:
    """Says what a run says before it starts, where the program that calls sslkit stands."""
    for note in notes:
        warnings.warn(note, stacklevel=4)


def _store(
    reader: SplitReader, seed: int, num_threads: int, world: World | None = None
) -> CachedSplit:
    return CachedSplit(
        reader,
        max_corrupt_fraction=DataSourceConfig().max_corrupt_fraction,
        seed=seed,
        num_threads=max(1, num_threads),
        world=world,
    )


def _labels(store: CachedSplit, rows: Tensor) -> Tensor:
    """Labels beside features, -1 for none. Asked after the images were read: labels of unreadable
    ones are replaced with them."""
    labels = torch.full((len(store),), -1) if store.labels is None else store.labels
    return labels.to(rows.device)
