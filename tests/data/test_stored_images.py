"""What an evaluator gets at: images of both splits, in batches."""

from __future__ import annotations

import pytest
import torch

from sslkit.api import Preprocess
from sslkit.builtin.crop_flip import CropFlip
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import StoredImages
from sslkit.data.splits import Splits
from sslkit.data.views import view_maker
from sslkit.errors import DataError
from sslkit.nn.compute import Compute
from tests.data.loaders import train_loader

CPU = torch.device("cpu")


@pytest.fixture(params=[0, 2**30], ids=["decoded", "resident"])
def stores(request, list_reader, photo):
    def store(num, first):
        reader = list_reader([photo(first + i, 24, 24) for i in range(num)], image_size=(24, 24))
        store = CachedSplit(
            reader, max_corrupt_fraction=0.1, seed=0, num_threads=2, resident_bytes=request.param
        )
        store.labels = torch.arange(num) % 4
        return store

    return store(30, 0), store(7, 100)


def images_of(stores, **changes):
    compute = Compute(CPU, "fp32", changes.pop("channels_last", True))
    preprocess = Preprocess(24, 24, "bilinear", (0.5,) * 3, (0.2,) * 3)
    options = {"seed": 5, "augmentation": CropFlip(CropFlip.Config(size=24))}
    return StoredImages(Splits(*stores), preprocess, compute, **{**options, **changes})


def test_epochs_are_keyed_by_seed_epoch_and_position(stores, crop_augmentation):
    def epoch(number, **changes):
        batches = images_of(stores, **changes).augmented(crop_augmentation((16,)), batch_size=8)
        assert batches.steps_per_epoch == 3  # 30 images: the last 6 are left out
        return list(batches.epoch(number))

    first = epoch(0)
    assert [len(batch) for batch in first] == [8, 8, 8]
    together = torch.cat([batch.indices for batch in first])
    assert len(together.unique()) == 24
    for batch in first:
        assert batch.views[0].shape == (8, 3, 16, 16)
        assert batch.views[0].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, batch.indices % 4)
    for again, batch in zip(epoch(0), first, strict=True):
        assert torch.equal(again.views[0], batch.views[0])
    for others in (epoch(1), epoch(0, seed=6)):
        assert not torch.equal(torch.cat([b.indices for b in others]), together)
    assert (
        not epoch(0, channels_last=False)[0]
        .views[0]
        .is_contiguous(memory_format=torch.channels_last)
    )


def test_views_and_order_are_not_those_of_the_run(stores, crop_augmentation):
    augmentation = crop_augmentation((16,))
    loader = train_loader(stores[0], augmentation, 8, seed=5)
    mine = next(iter(images_of(stores).augmented(augmentation, batch_size=8).epoch(0)))
    assert not torch.equal(next(loader.epoch(0)).indices, mine.indices)


def test_some_rows_and_fewer_than_a_batch(stores, crop_augmentation):
    rows = torch.tensor([2, 3, 11, 20, 29])
    batches = images_of(stores).augmented(crop_augmentation((16,)), batch_size=64, rows=rows)
    assert batches.steps_per_epoch == 1
    (batch,) = batches.epoch(3)
    assert batch.indices.sort().values.tolist() == rows.tolist()


def test_views_do_not_depend_on_whose_maker_it_is(stores, crop_augmentation):
    run = view_maker(stores[0], crop_augmentation((20, 20)), CPU)
    augmentation = crop_augmentation((16,))
    alone = images_of(stores).augmented(augmentation, batch_size=8)
    beside = images_of(stores, maker=run).augmented(augmentation, batch_size=8)
    for a, b in zip(alone.epoch(0), beside.epoch(0), strict=True):
        assert torch.equal(a.views[0], b.views[0])
    assert run.augmentation.views[0].size == 20, "the run's maker stays as it was"


def test_preprocessed_images_are_those_of_every_evaluator(stores):
    images = images_of(stores)
    parts = list(images.preprocessed("test", batch_size=4))
    assert [len(part) for part in parts] == [4, 3]
    assert parts[0].is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([stores[1].read(i) for i in range(7)]) / 255.0
    assert torch.allclose(torch.cat(parts), expected, atol=1e-6)
    (some,) = images.preprocessed("train", torch.tensor([4, 1]))
    assert torch.allclose(some[1], stores[0].read(1) / 255.0, atol=1e-6)
    with pytest.raises(DataError, match="no test split"):
        next(images_of((stores[0], None)).preprocessed("test"))


def test_images_without_a_label_are_told_apart(stores):
    stores[0].labels[::2] = -1
    images = images_of(stores)
    assert images.labelled("train").tolist() == list(range(1, 30, 2))
    stores[1].labels = None
    assert images.labelled("test").tolist() == []
    assert torch.equal(images.labels("train"), stores[0].labels)
