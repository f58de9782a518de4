"""Batches and features for programs: pretext targets, damaged images, missing labels, ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sslkit
from sslkit.errors import DataError
from sslkit.parallel.world import OneProcess


class Two(OneProcess):
    """One of two ranks, alone: what `load_batches` asks of it sends nothing."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.fixture
def photographs(list_reader, photo):
    def make(damaged: int | None = None, first: int = 0):
        images = [photo(first + i) for i in range(24)]
        if damaged is not None:
            images[damaged] = "truncated"
        return list_reader(images, [i % 3 for i in range(24)], (40, 48))

    return make


def test_a_batch_has_what_its_augmentation_says_of_it(photographs, crop_augmentation) -> None:
    """The targets of a pretext task, by calling the augmentation and by the loader."""
    augment, reader = crop_augmentation(), photographs()
    pixels = torch.stack([torch.from_numpy(reader.read(i)).permute(2, 0, 1) for i in range(24)])
    for batch in sslkit.load_batches(reader, augment, batch_size=8).epoch(2):
        made = augment(pixels[batch.indices], batch.indices, epoch=2)
        assert made.targets.keys() == batch.targets.keys() == {"flipped"}
        assert torch.equal(made.targets["flipped"], batch.targets["flipped"])
        assert made.labels is None


def test_ranks_share_each_batch(photographs, crop_augmentation) -> None:
    whole = list(sslkit.load_batches(photographs(), crop_augmentation(), batch_size=8).epoch(1))
    shares = [
        list(
            sslkit.load_batches(
                photographs(), crop_augmentation(), batch_size=8, world=Two(rank)
            ).epoch(1)
        )
        for rank in (0, 1)
    ]
    for together, *parts in zip(whole, *shares, strict=True):
        assert [len(part) for part in parts] == [4, 4]
        assert torch.equal(torch.cat([part.indices for part in parts]), together.indices)
        joined = torch.cat([part.views[0] for part in parts])
        assert torch.equal(joined, together.views[0])


def test_too_many_damaged_images_end_it(photographs) -> None:
    train, test = photographs(damaged=5), photographs(first=24)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    with pytest.raises(DataError, match="1 of 24 images are unreadable"):  # above 0.1 %
        sslkit.take_features(network, train, test)


def test_labels_that_some_images_lack_stay_missing(photographs) -> None:
    train, test = photographs(), photographs(first=24)
    train.labels = np.where(np.arange(24) % 2 == 0, -1, np.arange(24) % 3)
    bank = sslkit.take_features(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), train, test)
    assert bank.train_labels.tolist() == train.labels.tolist()
    assert bank.train.shape == (24, 12)
