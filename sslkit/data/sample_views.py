"""Views of samples of any shape and type, and of images for an augmentation that is not made for
them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslkit.api import Augmentation
from sslkit.data.cached_split import CachedSplit
from sslkit.data.view_base import Chunk, Prepared, ViewMaker, Views, joined
from sslkit.errors import DataError
from sslkit.randomness import SampleRandom

_CHUNK = 32
"""Samples that one thread reads at a time, where they are read on demand."""


class SampleViews(ViewMaker):
    """One draw, one gather of whole samples and one call of `make` for each view of a batch.

    Samples in memory are taken from there, by the training thread; others are read into the batch
    by loader threads. All must have one shape. Raises DataError where they do not."""

    def __init__(
        self, store: CachedSplit, augmentation: Augmentation, device: torch.device, compiled: bool
    ) -> None:
        super().__init__(store, augmentation, device, compiled)
        sides = store.sample.sides
        if sides is None:
            raise DataError(
                f"data: the samples are {store.sample} and {type(augmentation).__name__} works on "
                "batches of one shape; pad or cut them in the data source"
            )
        self._sides = torch.tensor([sides])
        self.threaded = store.resident is None

    def chunks(self, random: SampleRandom) -> list[Chunk]:
        count = len(random.indices)
        batch = torch.empty(
            (count, *self._shape), dtype=self.store.sample.torch_dtype, pin_memory=self._pin
        )
        step = _CHUNK if self.threaded else count
        rows = [slice(start, start + step) for start in range(0, count, step)]
        return [Chunk(random.select(part), (batch[part],), (batch,)) for part in rows]

    def prepare(self, chunk: Chunk) -> Prepared:
        indices, (samples,) = chunk.random.indices, chunk.places
        params = self.augmentation.draw(chunk.random, self._sides.expand(len(indices), -1))
        if self.store.resident is not None:
            torch.index_select(self.store.resident, 0, indices, out=samples)
        else:
            for index, place in zip(indices.tolist(), samples, strict=True):
                place.copy_(self.store.read(index))
        return Prepared(chunk.random, params, self.augmentation.targets(params), chunk.batch)

    def finish(self, parts: Sequence[Prepared]) -> Views:
        num_views = len(self.augmentation.views)
        drawn = [joined([part.params[view] for part in parts]) for view in range(num_views)]
        *params, targets = self._on_device([*drawn, joined([part.targets for part in parts])])
        samples: Tensor = self.to_device(parts[0].images[0])
        with torch.no_grad():
            views = self._rendered([samples] * num_views, [None] * num_views, params)
        return Views(tuple(views), targets)

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(side for side in self.store.sample.shape if side is not None)
