"""The samples of one split, images mostly, readable at any index.

Sets whose samples all have one shape are decoded once into a resident tensor; where the reader has
them as one array, that is used as it is. Other images are decoded when they are asked for.
Either way an unreadable image is replaced by another one, and the choice depends on the data and
the seed alone: never on threads, order or earlier reads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.api import ImageReader, SampleSpec, SplitReader, StreamReader, UnreadableImageError
from sslkit.data.given_array import tensor_of
from sslkit.data.stream_passes import StreamPasses
from sslkit.errors import DataError
from sslkit.parallel.shared_memory import shared_empty
from sslkit.parallel.world import OneProcess, World
from sslkit.randomness import SampleRandom
from sslkit.threads import ordered_groups

RESIDENT_BYTES = 8 * 2**30
"""Sets up to this size are kept in memory. A constant, never taken from the machine's state."""

RETRY_WAITS = (0.1, 0.5, 2.0)
"""Seconds to wait before each further attempt after an OSError."""

_LOAD_CHUNK = 128
_CANDIDATES = 64


class _SizesDifferError(Exception):
    """A reader announced one image size and delivered another."""


class CachedSplit:
    """One split of a data set, with damaged images replaced.

    A replaced image keeps its index (so order and randomness are those of the undamaged set) and
    takes pixels and label of the image that stands in for it, so that every label is true.
    `labels` is changed in place when an image turns out to be unreadable.

    Raises DataError when more than `max_corrupt_fraction` of the images are unreadable, or when an
    OSError persists over the retries. Thread-safe.
    """

    def __init__(
        self,
        reader: SplitReader,
        *,
        max_corrupt_fraction: float,
        seed: int,
        num_threads: int,
        resident_bytes: int = RESIDENT_BYTES,
        retry_waits: Sequence[float] = RETRY_WAITS,
        world: World | None = None,
    ) -> None:
        """world: ranks that open the split together; those of a machine share what is resident, of
        which each decodes a part."""
        if len(reader) == 0:
            raise DataError("data: the set has no images; check the paths of the data block")
        self.reader = reader
        self._source = StreamPasses(reader) if isinstance(reader, StreamReader) else reader
        self.sample = reader.sample
        """Shape and type of a sample."""
        self.class_names = None if reader.class_names is None else tuple(reader.class_names)
        self.labels = self._checked_labels()
        self.num_threads = num_threads
        self.corrupt: dict[int, str] = {}
        """index -> reason of every unreadable image found so far."""
        self._seed = seed
        self._max_corrupt_fraction = max_corrupt_fraction
        self._retry_waits = tuple(retry_waits)
        self._replaced_by: dict[int, int] = {}
        self._lock = threading.Lock()
        self._world = world or OneProcess()
        self._fingerprint: str | None = None
        self.notes: tuple[str, ...] = ()
        """What examining the images brought up; see `examine`."""
        self.resident = self._load(resident_bytes)
        """(N, *sample.shape), such as (N, C, H, W) uint8, or None where samples are read on
        demand. It may be a read-only file: writing to it would end the process."""

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def channels(self) -> int:
        """Channels of a sample; 0 where it has no such axis."""
        return self.sample.channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) where these are images and all have the same."""
        sides = self.sample.sides
        return (sides[0], sides[1]) if self.sample.is_image and sides is not None else None

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def streamed(self) -> bool:
        """Whether positions go on beyond the length, which is that of an epoch, and are read in
        rising order."""
        return isinstance(self.reader, StreamReader)

    @property
    def place(self) -> str:
        """Where the images are, in words."""
        if self.streamed:
            return "a stream, decoded as it comes"
        if isinstance(self.reader.samples, np.memmap):
            return "memory-mapped"
        return "decoded as they are needed" if self.resident is None else "in memory"

    @property
    def details(self) -> dict[str, object]:
        """What the reader decided on opening, such as columns or where labels come from; for the
        record of the run."""
        return dict(getattr(self.reader, "details", {}))

    @property
    def fingerprint(self) -> str:
        """The reader's fingerprint of the data, computed once."""
        if self._fingerprint is None:
            self._fingerprint = self.reader.fingerprint()
        return self._fingerprint

    def read(self, index: int) -> Tensor:
        """Sample `index`, or the one that stands in for it, channels first: (C, H, W) uint8 of
        images."""
        if self.resident is not None:
            return self.resident[index]
        return torch.from_numpy(self._read(index))

    def report(self) -> dict[str, object]:
        """What is known of unreadable images, ready for JSON. Images read on demand are found out
        while training: ask again at the end."""
        with self._lock:
            return {
                "num_images": len(self),
                "num_unreadable": len(self.corrupt),
                "unreadable": self.unreadable(sorted(self.corrupt)),
            }

    def unreadable(self, indices: Iterable[int]) -> list[dict[str, object]]:
        """What is known of these images, as far as they are unreadable."""
        return [
            {
                "index": index,
                "image": self.reader.describe(index),
                "reason": self.corrupt[index],
                "replaced_by": self._replaced_by.get(index),
            }
            for index in indices
            if index in self.corrupt
        ]

    def take_over(self, index: int, reason: str, replaced_by: int) -> None:
        """Learns of an unreadable image that was found, and replaced, in an earlier process."""
        self.corrupt[index] = reason
        self._replace(index, replaced_by)

    def _checked_labels(self) -> Tensor | None:
        given = self.reader.labels
        if given is None:
            return None
        if len(given) != len(self.reader):
            raise DataError(
                f"data: the source gave {len(given)} labels for {len(self.reader)} images; "
                "valid is one each; correct the data source"
            )
        return torch.from_numpy(np.array(given, dtype=np.int64))

    # --- Loading ---------------------------------------------------------------------------------

    def _load(self, resident_bytes: int) -> Tensor | None:
        if self.streamed:
            return None
        if self.reader.samples is not None:
            return tensor_of(self.reader.samples, len(self), self.sample)
        shape = [side for side in self.sample.shape if side is not None]
        if len(shape) < len(self.sample.shape):
            return None
        dtype = self.sample.torch_dtype
        if len(self) * math.prod(shape) * dtype.itemsize > resident_bytes:
            return None
        resident = shared_empty(self._world, (len(self), *shape), dtype)
        values = resident.numpy()

        def load(start: int) -> None:
            stop = min(start + _LOAD_CHUNK, len(self))
            for index in range(start, stop):
                sample = self._read(index)
                if sample.shape != values.shape[1:]:
                    raise _SizesDifferError
                values[index] = sample

        starts = range(0, len(self), _LOAD_CHUNK)[self._world.local_rank :: self._world.local_size]
        groups = ((None, [start]) for start in starts)
        differ = False
        with closing(ordered_groups(load, groups, num_threads=self.num_threads)) as finished:
            try:
                for _ in finished:
                    pass
            except _SizesDifferError:
                differ = True
        self._world.barrier()
        self.agree(self._world)
        if self._world.any(differ):
            # Readers judge from a sample of the headers, which may miss the odd one out.
            self.sample = SampleSpec((self.channels, None, None))
            return None
        return resident

    # --- One sample ------------------------------------------------------------------------------

    def _read(self, index: int) -> NDArray[Any]:
        """Channels first."""
        image = self._attempt(index)
        if image is not None:
            return image
        for candidate in self._candidates(index):
            image = self._attempt(candidate)
            if image is not None:
                self._replace(index, candidate)
                return image
        which = f"not one of the {len(self)} images"
        if self.streamed:
            which = f"none of the {_CANDIDATES + 1} images from position {index} on"
        raise DataError(f"data: {which} is readable; {self._examples()}")

    def _attempt(self, index: int) -> NDArray[Any] | None:
        """The sample, or None where it is unreadable."""
        if index in self.corrupt:
            return None
        try:
            image = self._retried(index)
        except UnreadableImageError as error:
            self._mark(index, str(error))
            return None
        self._check(index, image)
        if image.size == 0:
            self._mark(index, "has no pixels" if self.sample.is_image else "is empty")
            return None
        # torch takes neither what is read-only nor what is turned round, as `image[::-1]` is
        plain = image.flags.writeable and min(image.strides, default=0) >= 0
        image = image if plain else image.copy()
        return image.transpose(2, 0, 1) if isinstance(self.reader, ImageReader) else image

    def _check(self, index: int, sample: NDArray[Any]) -> None:
        if isinstance(self.reader, ImageReader):
            # Of any size: readers judge from some headers, which may miss the odd one out.
            right = sample.ndim == 3 and sample.shape[2] == self.channels
            right = right and sample.dtype == np.uint8
            valid = f"uint8 (height, width, {self.channels})"
        else:
            right = self.sample.fits(sample.shape, sample.dtype.name)
            valid = str(self.sample)
        if not right:
            raise DataError(
                f"data: {self.reader.describe(index)} came as {sample.dtype} {sample.shape}; valid "
                f"is {valid}; correct the data source"
            )

    def _retried(self, index: int) -> NDArray[Any]:
        for wait in self._retry_waits:
            try:
                return self._source.read(index)
            except OSError:
                time.sleep(wait)
        try:
            return self._source.read(index)
        except OSError as error:
            raise DataError(
                f"data: cannot read {self.reader.describe(index)}: {error}; tried "
                f"{len(self._retry_waits) + 1} times; check the disk or the network, then resume"
            ) from error

    def _candidates(self, index: int) -> Iterator[int]:
        """Positions that may stand in for `index`, in an order that only it and the seed define."""
        if self.streamed:
            yield from range(index + 1, index + 1 + _CANDIDATES)
            return
        block = 0
        while len(self.corrupt) < len(self):
            random = SampleRandom(self._seed, "replacement", block, torch.tensor([index]))
            yield from random.integers("index", _CANDIDATES, len(self))[0].tolist()
            block += 1

    def _mark(self, index: int, reason: str) -> None:
        with self._lock:
            self.corrupt[index] = reason
            count = len(self.corrupt)
        total = max(len(self), index + 1) if self.streamed else len(self)
        if count > self._max_corrupt_fraction * total:
            raise DataError(
                f"data: {count} of {total} images are unreadable so far "
                f"({count / total:.2%}), above data.max_corrupt_fraction "
                f"{self._max_corrupt_fraction:g}; {self._examples()}; "
                "repair or remove them, or raise the field"
            )

    def _replace(self, index: int, source: int) -> None:
        with self._lock:
            self._replaced_by[index] = source
            if self.labels is not None:
                self.labels[index] = self.labels[source]

    def agree(self, world: World) -> None:
        """Takes over what the other ranks found unreadable and replaced, so that labels are the
        same on all of them, which call this together. Raises DataError as reading does."""
        with self._lock:
            mine = dict(self.corrupt), dict(self._replaced_by)
        for corrupt, replaced_by in world.collect(mine):
            for index in corrupt.keys() - self.corrupt.keys():
                self._mark(index, corrupt[index])
            for index in replaced_by.keys() - self._replaced_by.keys():
                self._replace(index, replaced_by[index])

    def _examples(self) -> str:
        with self._lock:
            first = sorted(self.corrupt.items())[:3]
        return "first: " + ", ".join(
            f"{self.reader.describe(index)} ({reason})" for index, reason in first
        )
