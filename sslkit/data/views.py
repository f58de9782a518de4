"""Views of images, and which maker suits a store.

Resident images are cropped in `finish`; images read on demand are cropped while they are decoded
and, where the training device is a CPU and nothing is compiled, finished by the loader threads too.

Shapes: B images of the batch, V views, C channels, S_v side of view v.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from sslkit.api import Augmentation, Geometry, ImageAugmentation, Params
from sslkit.data.cached_split import CachedSplit
from sslkit.data.resize import crop_view
from sslkit.data.sample_views import SampleViews
from sslkit.data.view_base import Chunk, Crop, Prepared, ViewMaker, Views, joined
from sslkit.nn.image import crop_resize
from sslkit.randomness import SampleRandom
from sslkit.threads import alone

_DECODE_CHUNK = 32
"""Images that one thread decodes at a time: few enough to share a batch among threads, enough to
spread the cost of one draw of parameters."""

_HELD_BYTES = 64 * 2**20
"""Decoded images that a thread holds at a time, about: 32 photographs of a camera take
gigabytes."""

_GATHER_CHUNK = 256
"""Whole images that one thread collects at a time, where they stay in the memory of the host."""

_DEVICE_SHARE = 0.25
"""Resident images move to the training device if they take at most this part of its memory. It
changes speed only: indexing gives the same bytes on either side."""


def view_maker(
    store: CachedSplit, augmentation: Augmentation, device: torch.device, *, compiled: bool = False
) -> ViewMaker:
    """The maker that suits the store. compiled: the work on whole batches goes through
    torch.compile, which takes its time in the first batch."""
    if not isinstance(augmentation, ImageAugmentation):
        return SampleViews(store, augmentation, device, compiled)
    if store.resident is not None:
        return ResidentViews(store, augmentation, device, compiled)
    return DecodedViews(store, augmentation, device, compiled)


class ImageViews(ViewMaker):
    """What both makers of views of images share."""

    augmentation: ImageAugmentation

    def render(
        self, samples: Sequence[Tensor], crops: Sequence[Crop | None], params: Sequence[Params]
    ) -> list[Tensor]:
        """The crop where it is still to be done, then the photometric part.

        samples: one (B, C, H, W) tensor for each view, uint8."""
        views = []
        for view, (image, crop) in enumerate(zip(samples, crops, strict=True)):
            cropped = image / 255.0 if crop is None else crop_resize(image, *crop)
            views.append(self.augmentation.photometric(view, cropped, params[view]))
        return views

    def _draw(self, random: SampleRandom, sizes: Tensor) -> tuple[list[Params], list[Geometry]]:
        params = self.augmentation.draw(random, sizes)
        geometry = [
            self.augmentation.geometry(view, params[view], sizes)
            for view in range(len(self.augmentation.views))
        ]
        return params, geometry


class ResidentViews(ImageViews):
    """One `index_select`, one draw, and per view one crop and one photometric call per batch."""

    def __init__(
        self,
        store: CachedSplit,
        augmentation: ImageAugmentation,
        device: torch.device,
        compiled: bool,
    ) -> None:
        super().__init__(store, augmentation, device, compiled)
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
        self._gathered_by_threads = device.type != "cpu" and self._images.device.type == "cpu"

    def chunks(self, random: SampleRandom) -> list[Chunk]:
        if not self._gathered_by_threads:
            return [Chunk(random)]
        count = len(random.indices)
        shape = (count, *self._images.shape[1:])
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
        starts = range(0, count, _GATHER_CHUNK)
        return [
            Chunk(random.select(rows), (batch[rows],), (batch,))
            for rows in (slice(start, start + _GATHER_CHUNK) for start in starts)
        ]

    def prepare(self, chunk: Chunk) -> Prepared:
        indices = chunk.random.indices
        params, geometry = self._draw(chunk.random, self._size.expand(len(indices), 2))
        targets = self.augmentation.targets(params)
        for images in chunk.places:
            torch.index_select(self._images, 0, indices, out=images)
        return Prepared(chunk.random, params, targets, chunk.batch, geometry)

    def finish(self, parts: Sequence[Prepared]) -> Views:
        num_views = len(self.augmentation.views)
        params = [joined([part.params[view] for part in parts]) for view in range(num_views)]
        boxes = [
            {
                "box": torch.cat([part.geometry[view].box for part in parts]),
                "flip": torch.cat([part.geometry[view].flip for part in parts]),
            }
            for view in range(num_views)
        ]
        targets = joined([part.targets for part in parts])
        rows = {"rows": torch.cat([part.random.indices for part in parts])}
        *tensors, targets, rows = self._on_device([*params, *boxes, targets, rows])
        params, boxes = tensors[:num_views], tensors[num_views:]
        if parts[0].images:
            images = self.to_device(parts[0].images[0])
        else:
            images = self._images.index_select(0, rows["rows"])
        crops = [
            (box["box"], box["flip"], crop.size, crop.interpolation)
            for box, crop in zip(boxes, parts[0].geometry, strict=True)
        ]
        return Views(tuple(self._rendered([images] * len(crops), crops, params)), targets)


class DecodedViews(ImageViews):
    """Each image is decoded once and cropped per view into uint8 batches, by loader threads. Where
    the training device is a CPU, they finish the views as well."""

    def __init__(
        self,
        store: CachedSplit,
        augmentation: ImageAugmentation,
        device: torch.device,
        compiled: bool,
    ) -> None:
        super().__init__(store, augmentation, device, compiled)
        self._rendered_by_threads = device.type == "cpu" and not compiled

    def with_augmentation(self, augmentation: Augmentation) -> Self:
        other = super().with_augmentation(augmentation)
        other._rendered_by_threads = self.device.type == "cpu"
        return other

    def chunks(self, random: SampleRandom) -> list[Chunk]:
        count = len(random.indices)
        dtype = torch.float32 if self._rendered_by_threads else torch.uint8
        batch = tuple(
            torch.empty(shape, dtype=dtype, pin_memory=self._pin) for shape in self._shapes(count)
        )
        starts = range(0, count, _DECODE_CHUNK)
        return [
            Chunk(random.select(rows), tuple(crop[rows] for crop in batch), batch)
            for rows in (slice(start, start + _DECODE_CHUNK) for start in starts)
        ]

    def prepare(self, chunk: Chunk) -> Prepared:
        crops = chunk.places
        if self._rendered_by_threads:
            shapes = self._shapes(len(chunk.random.indices))
            crops = tuple(torch.empty(shape, dtype=torch.uint8) for shape in shapes)
        drawn = []
        for rows, images in self._portions(chunk.random.indices):
            sizes = torch.tensor([image.shape[-2:] for image in images])
            drawn.append(self._draw(chunk.random.select(rows), sizes))
            _crop(images, drawn[-1][1], [crop[rows] for crop in crops])
        params, geometry = drawn[0]
        if len(drawn) > 1:
            params = [joined(parts) for parts in zip(*(p for p, _ in drawn), strict=True)]
        if self._rendered_by_threads:
            # Alone also in the training thread: some sums have other bits with more threads.
            with alone():
                views = self._render(crops, [None] * len(crops), params)
            for place, view in zip(chunk.places, views, strict=True):
                place.copy_(view)
        targets = self.augmentation.targets(params)
        return Prepared(chunk.random, params, targets, chunk.batch, geometry)

    def _portions(self, indices: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """(rows, images) that are in memory at a time: all of them, unless they are large. What is
        drawn for an image depends on the image alone, so the cut is not seen in the views."""
        images: list[Tensor] = []
        start, size = 0, 0
        for row, index in enumerate(indices.tolist()):
            images.append(self.store.read(index))
            size += images[-1].nbytes
            if size > _HELD_BYTES or row == len(indices) - 1:
                yield slice(start, row + 1), images
                images, start, size = [], row + 1, 0

    def finish(self, parts: Sequence[Prepared]) -> Views:
        targets = joined([part.targets for part in parts])
        if self._rendered_by_threads:
            return Views(parts[0].images, targets)
        num_views = len(self.augmentation.views)
        drawn = [joined([part.params[view] for part in parts]) for view in range(num_views)]
        *params, targets = self._on_device([*drawn, targets])
        images = [self.to_device(crops) for crops in parts[0].images]
        return Views(tuple(self._rendered(images, [None] * num_views, params)), targets)

    def _shapes(self, count: int) -> list[tuple[int, ...]]:
        return [(count, *view.shape(self.store.channels)) for view in self.augmentation.views]


def _crop(images: Sequence[Tensor], geometry: Sequence[Geometry], places: Sequence[Tensor]) -> None:
    """Writes the crop of each image into its row of the place of each view."""
    for crop, rows in zip(geometry, places, strict=True):
        boxes, flips = crop.box.long().tolist(), crop.flip.tolist()
        for image, box, flip, row in zip(images, boxes, flips, rows, strict=True):
            row.copy_(crop_view(image, box, flip, crop.size, crop.interpolation))
