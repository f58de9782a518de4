"""Batches of augmented training images, prepared ahead by threads, the same for any number of them.

Order, crops and every other choice are functions of (seed, epoch, image index), so an epoch can be
entered at any step, and nothing needs to be saved for a resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from sslkit.api import Augmentation, Batch
from sslkit.data.cached_split import CachedSplit
from sslkit.data.device_transfer import SideStream
from sslkit.data.prefetch import ordered_groups
from sslkit.data.view_base import Chunk, Prepared, ViewMaker
from sslkit.data.views import view_maker
from sslkit.errors import RecipeError
from sslkit.randomness import Order, SampleRandom


class TrainLoader:
    """The training batches of a run.

    The last, partial batch of an epoch is left out; the order changes with each epoch, so over a
    run every image is used. Raises RecipeError where there are fewer images than `batch_size`.
    """

    def __init__(
        self,
        store: CachedSplit,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        num_threads: int,
        compiled: bool = False,
        maker: ViewMaker | None = None,
        rows: Tensor | None = None,
    ) -> None:
        """compiled: see `view_maker`. maker: of this store and this augmentation, where there is
        one already. rows: (n,) positions of the images to use, on the CPU; default all."""
        self._rows = rows
        self._num_images = len(store) if rows is None else len(rows)
        if batch_size > self._num_images:
            raise RecipeError(
                f"train.batch_size: {batch_size} is more than the {self._num_images} training "
                f"images; choose at most {self._num_images}"
            )
        self.store = store
        self.batch_size = batch_size
        self.seed = seed
        self.num_threads = num_threads
        self.wait_s = 0.0
        """Seconds that the consumer has waited for prepared data, over all epochs."""
        self.give_up: Callable[[], bool] | None = None
        """Asked while an image is waited for: True ends the epoch there."""
        self._device = torch.device(device)
        self._maker = maker or view_maker(store, augmentation, self._device, compiled=compiled)
        self._side = SideStream(self._device) if self._device.type == "cuda" else None

    @property
    def maker(self) -> ViewMaker:
        """Makes the views; shared with the evaluation, so that images lie on the device once."""
        return self._maker

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self._num_images // self.batch_size

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on, on the training device.

        Close the iterator (or let it go out of scope) to end its threads early. Raises DataError.
        """
        order = Order(self.seed, epoch, self._num_images)

        def groups() -> Iterator[tuple[Tensor, list[Chunk]]]:
            for step in range(start_step, self.steps_per_epoch):
                indices = self._part(order, step)
                random = SampleRandom(self.seed, "augment", epoch, indices)
                yield indices, self._maker.chunks(random)

        num_threads = self.num_threads if self._maker.threaded else 0
        prepared = ordered_groups(
            self._maker.prepare, groups(), num_threads=num_threads, give_up=self.give_up
        )
        with closing(prepared):
            for _ in range(start_step, self.steps_per_epoch):
                start = time.perf_counter()
                found = next(prepared, None)
                self.wait_s += time.perf_counter() - start
                if found is None:  # given up
                    return
                indices, parts = found
                finish = partial(self._finish, epoch, indices, parts)
                yield finish() if self._side is None else self._side.run(finish)

    def indices(self, epoch: int, step: int) -> Tensor:
        """(B,) int64: which images make up a batch of an epoch."""
        return self._part(Order(self.seed, epoch, self._num_images), step)

    def _part(self, order: Order, step: int) -> Tensor:
        places = order[step * self.batch_size : (step + 1) * self.batch_size]
        return places if self._rows is None else self._rows[places]

    def _finish(self, epoch: int, indices: Tensor, parts: Sequence[Prepared]) -> Batch:
        views = self._maker.finish(parts)
        # Labels are looked up after the images were read: only then is every replacement known.
        labels = None if self.store.labels is None else self.store.labels[indices]
        on_device = self._maker.to_device(indices)
        return Batch(
            views=views.images,
            indices=on_device,
            random=SampleRandom(self.seed, "method", epoch, on_device),
            labels=None if labels is None else self._maker.to_device(labels),
            targets=views.targets,
        )
