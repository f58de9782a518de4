"""What the readers of a data source promise while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from sslkit.api import (
    IGNORED_PIXEL,
    HasBoxes,
    HasEncoded,
    HasMasks,
    ImageReader,
    SplitReader,
    StreamReader,
    UnreadableImageError,
)
from sslkit.experiment.trials import generator_states, same_values

from .dataset_bench import DatasetBench, equal, opened, positions, sample_of
from .interleaved import THREADS, at_once
from .laws import law, refuse

OPEN = ("opens-its-splits",)
READ = (*OPEN, "samples-are-as-announced", "no-global-random-numbers", "reads-repeat")
_BEYOND = 3
"""Samples after the first epoch of a stream that are taken."""
_MOST_OF_STREAM = 2000
_OF_CHANNELS = 4
"""Samples that are read with other channels."""


class ReaderLaws(DatasetBench):
    """The laws of `SplitReader` and its kinds."""

    @law('return from open("train") a SplitReader with samples, from open("test") one or None')
    def opens_its_splits(self) -> str:
        """`open` gives a reader with samples for "train", and one or nothing for "test"."""
        opened(self.source())
        odd = self.test is not None and not isinstance(self.test, SplitReader)
        refuse(odd, f'open("test") gave {type(self.test).__name__}')
        for name, reader in self.splits():
            sentences = not isinstance(reader.notes, str) and all(map(_is_text, reader.notes))
            refuse(not sentences, f"notes of {name} are {reader.notes!r:.200}")
        noun = self.train.sample.noun
        return ", ".join(f"{len(reader):,} {name} {noun}s" for name, reader in self.splits())

    @law(
        "give what `sample` says: images as (H, W, C) uint8, other samples in its shape and type",
        needs=OPEN,
    )
    def samples_are_as_announced(self) -> str:
        """`read` gives samples of the shape and the type that `sample` states, images (H, W, C)
        uint8; `samples`, where there is one, holds the same, channels first. So it is with every
        value of a field `channels`."""
        for name, reader in self.splits():
            for index in positions(reader):
                self._refuse_other_sample(reader, index, f"{name} {index}")
        others = self.other_channels()
        for channels in others:
            reader = opened(self.source(channels=channels))
            for index in positions(reader)[:_OF_CHANNELS]:
                where = f"with channels={channels}, train {index}"
                self._refuse_other_sample(reader, index, where)
        also = f"; also with channels={', '.join(map(str, others))}" if others else ""
        return f"{self.train.sample}{also}"

    def _refuse_other_sample(self, reader: SplitReader, index: int, where: str) -> None:
        sample = sample_of(reader, index)
        if sample is None:
            return
        first = sample
        if isinstance(reader, ImageReader):
            refuse(sample.ndim != 3, f"{where} is {sample.dtype} {sample.shape}")
            first = sample.transpose(2, 0, 1)
        fits = reader.sample.fits(first.shape, first.dtype.name)
        refuse(not fits, f"{where} is {sample.dtype} {sample.shape}, and sample {reader.sample}")
        if reader.samples is not None:
            refuse(len(reader.samples) != len(reader), f"{len(reader.samples)} in `samples`")
            refuse(not equal(np.array(reader.samples[index]), first), f"{where}: `samples` differs")

    @law(
        "let what is read follow from the position; what is random belongs into the augmentation",
        needs=OPEN,
    )
    def no_global_random_numbers(self) -> None:
        """Opening and reading use no global random numbers of torch, numpy or Python."""
        before = generator_states()
        reader = opened(self.source())
        for index in positions(reader)[:8]:
            sample_of(reader, index)
        reader.fingerprint()
        moved = [
            name
            for (name, state), (_, after) in zip(before, generator_states(), strict=True)
            if not same_values(state, after)
        ]
        refuse(moved, f"moves the global random numbers of {', '.join(moved)} on")

    @law(
        "let `read` follow from the position alone: no position in a file that goes on, no cache "
        "that is written to",
        needs=(*OPEN, "samples-are-as-announced", "no-global-random-numbers"),
    )
    def reads_repeat(self) -> None:
        """`read` gives the same sample each time, in any order."""
        for name, reader in self.splits():
            places = positions(reader)
            first = {index: sample_of(reader, index) for index in places}
            for order in (places[::-1], [*places[1::2], *places[::2]]):
                for index in order:
                    again = equal(sample_of(reader, index), first[index])
                    refuse(not again, f"{name} {index} is another one when read again")

    @law(
        "return an array of its own from every `read`, or one that is read-only: no buffer that "
        "the next one fills, no view of what is kept",
        needs=READ,
    )
    def reads_are_independent(self) -> None:
        """What `read` gave stays as it is while others are read, and writing to it changes nothing
        that is read later."""
        for name, reader in self.splits_again():
            places = positions(reader)[:8]
            given = [_array(reader, index) for index in places]
            kept = [None if each is None else each.copy() for each in given]
            for index in places:
                sample_of(reader, index)
            for index, mine, copy in zip(places, given, kept, strict=True):
                refuse(not equal(mine, copy), f"{name} {index} changed while others were read")
            for mine in given:
                if mine is not None and mine.flags.writeable:
                    mine[...] = 0
            for index, copy in zip(places, kept, strict=True):
                same = equal(sample_of(reader, index), copy)
                refuse(not same, f"{name} {index} is another one after writing to what read gave")

    @law(
        "share nothing between threads that moves: os.pread or a file opened in `read` instead of "
        "seek and read, a lock around a decoder, no buffer on self",
        needs=(*READ, "reads-are-independent"),
    )
    def threads_read_the_same(self) -> None:
        """Several threads that read at once, each in its own order, read what one does."""
        for name, reader in self.splits():
            others = _mixed_up(reader)
            refuse(others, f"{name} {others[:3]} are others when {THREADS} threads read")

    # --- Abilities --------------------------------------------------------------------------------

    @law(
        "resize masks with their images, by nearest neighbours; 255 is IGNORED_PIXEL",
        needs=READ,
    )
    def masks_fit_their_images(self) -> str:
        """`mask` gives (H, W) uint8 of the size of the image, positions in `mask_classes` or
        IGNORED_PIXEL, the same each time."""
        found = [reader for _, reader in self.splits() if isinstance(reader, HasMasks)]
        if not found:
            raise SkipTest("it has no masks")
        for reader in found:
            classes = len(reader.mask_classes)
            refuse(not 1 <= classes <= IGNORED_PIXEL, f"{classes} classes")
            for index in positions(reader)[:8]:
                mask, image = reader.mask(index), sample_of(reader, index)
                refuse(mask.dtype != np.uint8, f"the mask of {index} is {mask.dtype}")
                size = None if image is None else image.shape[:2]
                refuse(size not in (None, mask.shape), f"{index}: {mask.shape} of an image {size}")
                wrong = set(np.unique(mask).tolist()) - {*range(classes), IGNORED_PIXEL}
                refuse(wrong, f"{index}: values {sorted(wrong)[:5]} of {classes} classes")
                again = np.array_equal(mask, reader.mask(index))
                refuse(not again, f"{index}: another mask when read again")
        return f"{classes} classes"

    @law("give corners in pixels of the image: left, top, right, bottom", needs=READ)
    def boxes_fit_their_images(self) -> str:
        """`boxes` gives boxes with sides above 0 that reach into their image, with labels that are
        positions in `box_classes`, the same each time."""
        found = [reader for _, reader in self.splits() if isinstance(reader, HasBoxes)]
        if not found:
            raise SkipTest("it has no boxes")
        for reader in found:
            classes = len(reader.box_classes)
            for index in positions(reader)[:8]:
                boxes, image = reader.boxes(index), sample_of(reader, index)
                count = len(boxes.labels)
                lengths = {len(boxes.corners), len(boxes.difficult), len(boxes.crowd), count}
                shape = np.shape(boxes.corners)
                refuse(len(lengths) > 1 or shape != (count, 4), f"{index}: corners {shape}")
                wrong = (boxes.labels < 0) | (boxes.labels >= classes)
                refuse(wrong.any(), f"{index}: labels {boxes.labels.tolist()[:5]} of {classes}")
                left, top, right, bottom = np.asarray(boxes.corners).T
                height, width = (np.inf, np.inf) if image is None else image.shape[:2]
                inside = (right > 0) & (bottom > 0) & (left < width) & (top < height)
                fits = (right > left) & (bottom > top) & inside
                refuse(not fits.all(), f"{index}: {boxes.corners.tolist()[:2]}")
                again = reader.boxes(index)
                refuse(not np.array_equal(boxes.corners, again.corners), f"{index}: others again")
        return f"{classes} classes"

    @law("give the bytes of the file, and their number in encoded_sizes", needs=READ)
    def encoded_bytes_are_as_stated(self) -> None:
        """`encoded` gives each sample as it is stored, the same each time, as long as
        `encoded_sizes` says."""
        found = [reader for _, reader in self.splits() if isinstance(reader, HasEncoded)]
        if not found:
            raise SkipTest("its samples are not stored one by one")
        for reader in found:
            sizes = reader.encoded_sizes()
            if sizes is None:
                raise SkipTest("it does not know how they are stored")
            refuse(np.shape(sizes) != (len(reader),), f"sizes {np.shape(sizes)} of {len(reader)}")
            for index in positions(reader)[:8]:
                one, two = (bytes(reader.encoded(index)) for _ in range(2))
                refuse(one != two, f"{index}: other bytes when read again")
                refuse(
                    len(one) != sizes[index], f"{index}: {len(one)} bytes, stated {sizes[index]}"
                )

    @law(
        "let stored(position) begin at that position, whatever was read before, and go on from the "
        "first shard after the last",
        needs=(*OPEN, "samples-are-as-announced", "no-global-random-numbers"),
    )
    def a_stream_goes_on_where_it_is_told(self) -> str:
        """`stored(position)` gives what comes from there on, the same each time, and does not
        end."""
        reader = self.train
        if not isinstance(reader, StreamReader):
            raise SkipTest("it has a length")
        refuse(reader.epoch_samples < 1 or reader.shuffle < 1, "epoch_samples or shuffle below 1")
        refuse(reader.labels is not None, "it has labels, which streams have not")
        count = len(positions(reader))
        whole = list(_decoded(reader, 0, count))
        for start in (0, count // 2, count - 1):
            part = list(_decoded(reader, start, count - start))
            same = len(part) == count - start and all(map(equal, part, whole[start:]))
            refuse(not same, f"from position {start} on it gives others than from the first on")
        beyond = min(reader.epoch_samples, _MOST_OF_STREAM) + _BEYOND
        taken = sum(1 for _ in islice(reader.stored(0), beyond))
        refuse(taken < beyond, f"it ended after {taken} samples")
        return f"{reader.epoch_samples:,} samples are an epoch"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _mixed_up(reader: SplitReader) -> list[int]:
    """Positions at which several threads, each in its own order, read another sample; threads
    decode a stream, and one reads it."""
    places = positions(reader)
    read: Callable[[int], Any] = reader.read
    if isinstance(reader, StreamReader):
        stored, decode = list(islice(reader.stored(0), len(places))), reader.decode

        def read(index: int) -> Any:
            return decode(stored[index])

    def sample(index: int) -> NDArray[Any] | None:
        try:
            return np.array(read(index))
        except UnreadableImageError:
            return None

    expected = {index: sample(index) for index in places}

    def is_other(index: int) -> bool:
        return not equal(sample(index), expected[index])

    orders = [places[turn:] + places[:turn] for turn in range(THREADS)]
    tasks = [index for turn in zip(*orders, strict=True) for index in turn]
    others = at_once(is_other, tasks, reader)
    return [index for index, other in zip(tasks, others, strict=True) if other]


def _decoded(reader: StreamReader, start: int, count: int) -> Iterator[NDArray[Any] | None]:
    for stored in islice(reader.stored(start), count):
        try:
            yield np.array(reader.decode(stored))
        except UnreadableImageError:
            yield None


def _array(reader: SplitReader, index: int) -> NDArray[Any] | None:
    """What `read` gives itself."""
    try:
        return reader.read(index)
    except UnreadableImageError:
        return None
