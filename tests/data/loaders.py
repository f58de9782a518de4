"""A loader as a run has it, on the CPU."""

from __future__ import annotations

import torch

from sslkit.api import Augmentation
from sslkit.data.cached_split import CachedSplit
from sslkit.data.loader import TrainLoader
from sslkit.data.sampler import ShuffledSampler
from sslkit.data.views import view_maker


def train_loader(
    store: CachedSplit,
    augmentation: Augmentation,
    batch_size: int,
    *,
    seed: int,
    num_threads: int = 0,
) -> TrainLoader:
    maker = view_maker(store, augmentation, torch.device("cpu"))
    sampler = ShuffledSampler(len(store), batch_size, seed)
    return TrainLoader(maker, sampler, seed=seed, num_threads=num_threads)
