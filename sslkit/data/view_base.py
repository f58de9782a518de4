"""From the indices of a batch to its views: what every maker of views has in common.

`prepare` runs in loader threads on a chunk of a batch and stays on the CPU; `finish` joins the
chunks of a batch and works on whole batches on the training device. A batch is always cut into the
same chunks, so results do not depend on the number of threads.

Shapes: B samples of the batch, V views, C channels, S_v side of view v.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from sslkit.api import Augmentation, Geometry, Params, largest_view
from sslkit.data.cached_split import CachedSplit
from sslkit.data.device_transfer import bundle
from sslkit.nn.chunked import block_rows, in_blocks
from sslkit.randomness import SampleRandom

Crop = tuple[Tensor, Tensor, int | tuple[int, int], Literal["bilinear", "bicubic"]]
"""Box, flip, size, interpolation: what `crop_resize` takes."""


@dataclass(frozen=True)
class Prepared:
    """A chunk of a batch on its way: everything on the CPU."""

    random: SampleRandom
    params: list[Params]
    targets: Mapping[str, Tensor]
    images: tuple[Tensor, ...] = ()
    """Those of the whole batch, shared by its chunks: V tensors of crops (B, C, S_v, S_v), uint8,
    or of finished views, float32; or one of whole samples (B, *shape); empty where those are on
    the device already."""
    geometry: Sequence[Geometry] = ()
    """The crop of each view of images."""


@dataclass(frozen=True)
class Views:
    """The views of a batch, on the training device."""

    images: tuple[Tensor, ...]
    """V tensors (B, *shape of the view): (B, C, S_v, S_v) float32 in [0, 1] of images."""
    targets: Mapping[str, Tensor]


class ViewMaker(ABC):
    """Makes the views of batches of one store. `prepare` runs in loader threads, everything else in
    the thread of the training."""

    threaded = True
    """Whether `prepare` is worth threads."""

    def __init__(
        self, store: CachedSplit, augmentation: Augmentation, device: torch.device, compiled: bool
    ) -> None:
        self.store = store
        self.augmentation = augmentation
        self.device = device
        self._pin = device.type == "cuda"
        # Batches all have one shape; without `dynamic=False` a second shape would slow them all.
        self._render = torch.compile(self.render, dynamic=False) if compiled else self.render
        # A compiled function works on few samples at a time on a CPU, whose cache then holds them.
        values = math.prod(largest_view(augmentation.views, store.channels))
        self._rows = block_rows(values) if compiled and device.type == "cpu" else None

    def with_augmentation(self, augmentation: Augmentation) -> Self:
        """A maker of other views of the same samples, which share their memory; not compiled."""
        other = copy.copy(self)
        other.augmentation = augmentation
        other._render = other.render
        other._rows = None
        return other

    def render(
        self, samples: Sequence[Tensor], crops: Sequence[Crop | None], params: Sequence[Params]
    ) -> list[Tensor]:
        """The views of a batch: (B, *shape) of the samples for each view to the view."""
        return [
            self.augmentation.make(view, part, params[view]) for view, part in enumerate(samples)
        ]

    def _rendered(
        self, samples: Sequence[Tensor], crops: Sequence[Crop | None], params: Sequence[Params]
    ) -> Sequence[Tensor]:
        if self._rows is None:
            return self._render(samples, crops, params)
        return in_blocks(self._render, (samples, crops, params), len(samples[0]), self._rows)

    @abstractmethod
    def chunks(self, random: SampleRandom) -> list[Chunk]:
        """The parts of a batch that are prepared one by one, possibly in different threads."""

    @abstractmethod
    def prepare(self, chunk: Chunk) -> Prepared: ...

    @abstractmethod
    def finish(self, parts: Sequence[Prepared]) -> Views:
        """The views of a batch, from all its chunks in order."""

    def make(self, random: SampleRandom) -> Views:
        """The views of a batch, in the caller's thread."""
        return self.finish([self.prepare(chunk) for chunk in self.chunks(random)])

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy that does not wait for work queued on a GPU."""
        if tensor.device.type == self.device.type:
            return tensor
        return self.pinned(tensor).to(self.device, non_blocking=self._pin)

    def pinned(self, tensor: Tensor) -> Tensor:
        """The tensor in memory from which a GPU can fetch it by itself."""
        return tensor.pin_memory() if self._pin and not tensor.is_pinned() else tensor

    def _on_device(self, mappings: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Mappings of small tensors, copied to the device in one go."""
        if self.device.type == "cpu":
            return [dict(mapping) for mapping in mappings]
        packed = bundle(mappings, pin=self._pin)
        return packed.unpack(packed.buffer.to(self.device, non_blocking=self._pin))


@dataclass(frozen=True)
class Chunk:
    """The rows of a batch that are prepared together."""

    random: SampleRandom
    """Randomness of these rows only; `random.indices` says which images."""
    places: tuple[Tensor, ...] = ()
    """Where the images or crops of these rows go: parts of the tensors of the whole batch."""
    batch: tuple[Tensor, ...] = ()
    """Those tensors; see `Prepared.images`."""


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mappings of the rows of chunks as one of the whole batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
