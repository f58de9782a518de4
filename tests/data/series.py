"""Samples that are no images, and an augmentation for them."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from sslkit.api import Augmentation, SampleSpec, SplitReader, ViewSpec
from sslkit.data.cached_split import CachedSplit

COUNT, LENGTH = 50, 40


class Waves(SplitReader):
    """Series (2, LENGTH), or tokens (LENGTH,)."""

    def __init__(self, dtype="float32", tokens=False, count=COUNT, seed=3):
        self.spec = SampleSpec((LENGTH,) if tokens else (2, LENGTH), dtype)
        generator = np.random.default_rng(seed)
        drawn = generator.normal(size=(count, *self.spec.shape)) * 30
        self.values = drawn.astype(dtype)
        self.labels = np.arange(count) % 3

    @property
    def sample(self):
        return self.spec

    def __len__(self):
        return len(self.values)

    def read(self, index):
        return self.values[index]

    def fingerprint(self):
        return hashlib.sha256(self.values.tobytes()).hexdigest()[:16]


class Windows(Augmentation):
    """Windows at random places, multiplied by a number where they are series."""

    def __init__(self, length=16, scale=True, spec=None):
        self.length = length
        self.scale = scale
        dtype = "float32" if scale else "int64"
        self.spec = spec or ViewSpec((length,), channels=None if scale else 0, dtype=dtype)

    @property
    def views(self):
        return (self.spec, self.spec)

    def draw(self, random, sizes):
        assert sizes.shape == (len(random.indices), 1)
        room = int(sizes[0, 0]) - self.length + 1
        return [
            {
                "start": random.substream(view).integers("start", 1, room)[:, 0],
                "factor": random.substream(view).uniform("factor", 1, 0.5, 2.0)[:, 0],
            }
            for view in range(2)
        ]

    def make(self, view, samples, params):
        places = params["start"][:, None] + torch.arange(self.length)
        if not self.scale:
            return samples.gather(1, places)
        places = places[:, None].expand(-1, samples.shape[1], -1)
        return samples.gather(2, places) * params["factor"][:, None, None]

    def targets(self, params):
        return {"start": params[0]["start"]}


def store(reader, **options):
    return CachedSplit(reader, max_corrupt_fraction=0.5, seed=0, num_threads=2, **options)
