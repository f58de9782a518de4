"""From image indices to augmented views: parameters, crops, photometric part.

`prepare` runs in loader threads on a chunk of a batch and stays on the CPU; `finish` joins the
chunks of a batch and works on whole batches on the training device. Resident images are cropped in
`finish`; images read on demand are cropped while they are decoded. A batch is always cut into the
same chunks, so results do not depend on the number of threads.

Shapes: B images of the batch, V views, C channels, S_v side of view v.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.data.resize import crop_view
from sslkit.data.store import ImageStore
from sslkit.interfaces import Augmentation, Geometry, Params
from sslkit.nn.image import crop_resize
from sslkit.randomness import SampleRandom

_DECODE_CHUNK = 32
"""Images that one thread decodes at a time: few enough to share a batch among threads, enough to
spread the cost of one draw of parameters."""

_DEVICE_SHARE = 0.25
"""Resident images move to the training device if they take at most this part of its memory. It
changes speed only: indexing gives the same bytes on either side."""


@dataclass(frozen=True)
class Prepared:
    """A chunk of a batch on its way: everything on the CPU."""

    random: SampleRandom
    params: list[Params]
    geometry: list[Geometry]
    targets: Mapping[str, Tensor]
    images: Tensor | None = None
    """(B, C, H, W) uint8 whole images, where the crop is still to be done."""
    crops: tuple[Tensor, ...] = ()
    """V tensors (B, C, S_v, S_v) uint8 of the whole batch, shared by its chunks."""


@dataclass(frozen=True)
class Views:
    """The views of a batch, on the training device."""

    images: tuple[Tensor, ...]
    """V tensors (B, C, S_v, S_v), float32 in [0, 1]."""
    targets: Mapping[str, Tensor]


class ViewMaker(ABC):
    """Makes the views of batches of one store."""

    threaded = True
    """Whether `prepare` is worth threads."""

    def __init__(self, store: ImageStore, augmentation: Augmentation, device: torch.device) -> None:
        self.store = store
        self.augmentation = augmentation
        self.device = device
        self._pin = device.type == "cuda"

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

    def _draw(self, random: SampleRandom, sizes: Tensor) -> tuple[list[Params], list[Geometry]]:
        params = self.augmentation.draw(random, sizes)
        geometry = [
            self.augmentation.geometry(view, params[view], sizes)
            for view in range(len(self.augmentation.views))
        ]
        return params, geometry

    def _params_to_device(self, params: Params) -> Params:
        return {name: self.to_device(value) for name, value in params.items()}


@dataclass(frozen=True)
class Chunk:
    """The rows of a batch that are prepared together."""

    random: SampleRandom
    """Of these rows only; `random.indices` says which images."""
    crops: tuple[Tensor, ...] = ()
    """Where the crops of these rows go, views into tensors of the whole batch."""
    batch_crops: tuple[Tensor, ...] = ()


def view_maker(store: ImageStore, augmentation: Augmentation, device: torch.device) -> ViewMaker:
    """The maker that suits the store."""
    if store.resident is not None:
        return ResidentViews(store, augmentation, device)
    return DecodedViews(store, augmentation, device)


class ResidentViews(ViewMaker):
    """One `index_select`, one draw, and per view one crop and one photometric call per batch."""

    def __init__(self, store: ImageStore, augmentation: Augmentation, device: torch.device) -> None:
        super().__init__(store, augmentation, device)
        assert store.resident is not None
        assert store.image_size is not None
        self._images = store.resident
        # On a CPU the work is small, and OpenMP regions of other threads slow those of the
        # training thread down for good: 0 threads trained 1.1 to 1.4 times faster than 4.
        self.threaded = device.type != "cpu"
        self._size = torch.tensor([store.image_size])
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            if self._images.nbytes <= _DEVICE_SHARE * total:
                self._images = self._images.to(device)

    def chunks(self, random: SampleRandom) -> list[Chunk]:
        return [Chunk(random)]

    def prepare(self, chunk: Chunk) -> Prepared:
        indices = chunk.random.indices
        params, geometry = self._draw(chunk.random, self._size.expand(len(indices), 2))
        targets = self.augmentation.targets(params)
        images = None
        if self._images.device.type == "cpu":
            images = self.pinned(self._images.index_select(0, indices))
        return Prepared(chunk.random, params, geometry, targets, images)

    def finish(self, parts: Sequence[Prepared]) -> Views:
        (part,) = parts
        if part.images is None:
            images = self._images.index_select(0, self.to_device(part.random.indices))
        else:
            images = self.to_device(part.images)
        views = []
        for view, (params, crop) in enumerate(zip(part.params, part.geometry, strict=True)):
            box, flip = self.to_device(crop.box), self.to_device(crop.flip)
            cropped = crop_resize(images, box, flip, crop.size, crop.interpolation)
            params = self._params_to_device(params)
            views.append(self.augmentation.photometric(view, cropped, params))
        return Views(tuple(views), self._params_to_device(part.targets))


class DecodedViews(ViewMaker):
    """Each image is decoded once and cropped per view into uint8 batches, by loader threads."""

    def chunks(self, random: SampleRandom) -> list[Chunk]:
        count = len(random.indices)
        batch = tuple(
            torch.empty(
                (count, self.store.channels, view.size, view.size),
                dtype=torch.uint8,
                pin_memory=self._pin,
            )
            for view in self.augmentation.views
        )
        starts = range(0, count, _DECODE_CHUNK)
        return [
            Chunk(random.select(rows), tuple(crop[rows] for crop in batch), batch)
            for rows in (slice(start, start + _DECODE_CHUNK) for start in starts)
        ]

    def prepare(self, chunk: Chunk) -> Prepared:
        images = [self.store.read(index) for index in chunk.random.indices.tolist()]
        sizes = torch.tensor([image.shape[-2:] for image in images])
        params, geometry = self._draw(chunk.random, sizes)
        for crop, crops in zip(geometry, chunk.crops, strict=True):
            boxes, flips = crop.box.long().tolist(), crop.flip.tolist()
            for image, box, flip, view in zip(images, boxes, flips, crops, strict=True):
                view.copy_(crop_view(image, box, flip, crop.size, crop.interpolation))
        targets = self.augmentation.targets(params)
        return Prepared(chunk.random, params, geometry, targets, crops=chunk.batch_crops)

    def finish(self, parts: Sequence[Prepared]) -> Views:
        views = []
        for view, crops in enumerate(parts[0].crops):
            images = self.to_device(crops) / 255.0
            params = self._params_to_device(_joined([part.params[view] for part in parts]))
            views.append(self.augmentation.photometric(view, images, params))
        targets = _joined([part.targets for part in parts])
        return Views(tuple(views), self._params_to_device(targets))


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
