"""A part of a reader: some of its samples, or other classes for them, with all its abilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.api import (
    Boxes,
    HasBoxes,
    HasEncoded,
    HasMasks,
    ImageReader,
    SampleSpec,
    SplitReader,
)


def part_of(
    whole: SplitReader,
    rows: NDArray[np.int64] | None = None,
    labels: NDArray[np.int64] | None = None,
    class_names: Sequence[str] | None = None,
) -> PartReader:
    """Some samples of another reader, in their order, with its abilities. rows: (n,) positions in
    it; None: all of them. labels, class_names: in place of its own."""
    abilities = tuple(part for ability, part in _PARTS.items() if isinstance(whole, ability))
    return _part_class(abilities)(whole, rows, labels, class_names)


@cache
def _part_class(abilities: tuple[type[PartReader], ...]) -> type[PartReader]:
    return type("PartReader", (*abilities, PartReader), {})


class PartReader(SplitReader):
    """What `part_of` makes, whatever the samples are."""

    def __init__(
        self,
        whole: SplitReader,
        rows: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._whole = whole
        self._rows = np.arange(len(whole)) if rows is None else rows
        self._all = rows is None
        given = whole.labels if labels is None else labels
        self.labels = given if given is None or rows is None else given[rows]
        self.class_names = whole.class_names if class_names is None else class_names
        self.notes = whole.notes
        self.details = dict(getattr(whole, "details", {}))
        self.samples = self._part_of(whole.samples)

    @property
    def sample(self) -> SampleSpec:
        return self._whole.sample

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> NDArray[Any]:
        return self._whole.read(self._at(index))

    def describe(self, index: int) -> str:
        return self._whole.describe(self._at(index))

    def key(self, index: int) -> str:
        return self._whole.key(self._at(index))

    def fingerprint(self) -> str:
        """That of the whole, with the rows and the classes."""
        digest = hashlib.blake2b(self._whole.fingerprint().encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self._rows, dtype="<i8").data)
        digest.update("\0".join(self.class_names or ()).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _at(self, index: int) -> int:
        return int(self._rows[index])

    def _part_of(self, samples: NDArray[Any] | None) -> NDArray[Any] | None:
        """A part of a mapped file would be read into memory: it is read one by one instead."""
        if samples is None or self._all:
            return samples
        return None if isinstance(samples, np.memmap) else samples[self._rows]


class _ImagePart(PartReader, ImageReader):
    _whole: ImageReader

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.channels = self._whole.channels
        self.image_size = self._whole.image_size


class _MaskPart(PartReader, HasMasks):
    _whole: Any

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.mask_classes = self._whole.mask_classes

    def mask(self, index: int) -> NDArray[np.uint8]:
        mask: NDArray[np.uint8] = self._whole.mask(self._at(index))
        return mask


class _BoxPart(PartReader, HasBoxes):
    _whole: Any

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.box_classes = self._whole.box_classes

    def boxes(self, index: int) -> Boxes:
        boxes: Boxes = self._whole.boxes(self._at(index))
        return boxes


class _EncodedPart(PartReader, HasEncoded):
    _whole: Any

    def encoded_sizes(self) -> NDArray[np.int64] | None:
        sizes: NDArray[np.int64] | None = self._whole.encoded_sizes()
        return None if sizes is None else sizes[self._rows]

    def encoded(self, index: int) -> bytes | memoryview:
        encoded: bytes | memoryview = self._whole.encoded(self._at(index))
        return encoded


_PARTS: dict[type, type[PartReader]] = {
    ImageReader: _ImagePart,
    HasMasks: _MaskPart,
    HasBoxes: _BoxPart,
    HasEncoded: _EncodedPart,
}
"""Ability -> the part that has it too."""
