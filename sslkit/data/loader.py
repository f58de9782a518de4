"""Batches of augmented training images, prepared ahead by threads, the same for any number of them.

Which samples make a batch is a function of (epoch, step), the sampler's; crops and every other
choice are functions of (seed, epoch, sample). So an epoch can be entered at any step, and nothing
needs to be saved for a resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

from torch import Tensor

from sslkit.api import Batch
from sslkit.api.views import METHOD_STREAM, VIEW_STREAM
from sslkit.data.device_transfer import SideStream
from sslkit.data.sampler import Sampler
from sslkit.data.view_base import Chunk, Prepared, ViewMaker
from sslkit.parallel.division import Division
from sslkit.randomness import SampleRandom
from sslkit.threads import ordered_groups


class TrainLoader:
    """The training batches of a run: the samples that a sampler names, as a maker's views."""

    def __init__(
        self,
        maker: ViewMaker,
        sampler: Sampler,
        *,
        seed: int,
        num_threads: int,
        division: Division | None = None,
    ) -> None:
        """seed: of the views and of the keyed randomness that methods are given. division: how
        ranks share a batch, of which this loader makes one share; None: the whole batch."""
        self.store = maker.store
        self.sampler = sampler
        self.division = division or Division(sampler.batch_size)
        self.seed = seed
        self.num_threads = num_threads
        self.wait_s = 0.0
        """Seconds that the consumer has waited for prepared data, over all epochs."""
        self.give_up: Callable[[], bool] | None = None
        """Asked while an image is waited for: True ends the epoch there."""
        self._maker = maker
        self._side = SideStream(maker.device) if maker.device.type == "cuda" else None

    @property
    def maker(self) -> ViewMaker:
        """Makes the views; shared with the evaluation, so that images lie on the device once."""
        return self._maker

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.sampler.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on, on the training device.

        Close the iterator (or let it go out of scope) to end its threads early. Raises DataError.
        """

        def groups() -> Iterator[tuple[Tensor, list[Chunk]]]:
            for step in range(start_step, self.steps_per_epoch):
                whole = self.sampler.batch(epoch, step)
                random = SampleRandom(self.seed, VIEW_STREAM, epoch, self._share(whole))
                yield whole, self._maker.chunks(random)

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
                whole, parts = found
                finish = partial(self._finish, epoch, whole, parts)
                yield finish() if self._side is None else self._side.run(finish)

    def another(self) -> TrainLoader:
        """A loader of the same batches, with the same maker, whose waiting is not counted here."""
        return TrainLoader(
            self._maker,
            self.sampler,
            seed=self.seed,
            num_threads=self.num_threads,
            division=self.division,
        )

    def _share(self, indices: Tensor) -> Tensor:
        return indices if self.division.size == 1 else indices[self.division.rows]

    def indices(self, epoch: int, step: int) -> Tensor:
        """(B,) int64: which images make up a batch of an epoch."""
        return self.sampler.batch(epoch, step)

    def _finish(self, epoch: int, whole: Tensor, parts: Sequence[Prepared]) -> Batch:
        views = self._maker.finish(parts)
        indices = self._share(whole)
        # Labels are looked up after the images were read: only then is every replacement known.
        labels = None if self.store.labels is None else self.store.labels[indices]
        on_device = self._maker.to_device(indices)
        return Batch(
            views=views.images,
            indices=on_device,
            random=SampleRandom(self.seed, METHOD_STREAM, epoch, on_device),
            labels=None if labels is None else self._maker.to_device(labels),
            targets=views.targets,
            passing=None
            if self.division.size == 1
            else SampleRandom(self.seed, METHOD_STREAM, epoch, self._maker.to_device(whole)),
        )
