"""What the images themselves show before a run: test images that are training images, and pixels
that use next to nothing of their range. Cheap, bounded, and the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit.api import HasEncoded, UnreadableImageError
from sslkit.data.cached_split import CachedSplit
from sslkit.data.splits import OTHER_TEST_DATA, Splits
from sslkit.errors import DataError, RecipeError
from sslkit.randomness import Order

Pairs = list[tuple[int, int]]
"""(test image, equal training image)."""

_PLACES = 64
"""Values of an image that its key is made of; equal keys are compared in full."""
_COMPARED = 3000
"""Encoded images that are read to be compared, about: some 2 s for ImageNet."""
_CANDIDATES = 16
"""Training images that one test image is compared with one by one; where more have its key, as in
sets that are mostly background, digests of whole images tell them apart."""
_ALIGNED = 64
_ENOUGH = 32
"""Test images that must all be training images before the split is refused, where not all were
looked at."""
_MAPPED_BYTES = 2 * 2**30
"""Larger mapped files are not read for this: `sslkit pack` has looked before it wrote them."""
_LOOKED_AT = 32
_LOW = 64
"""A set whose brightest value is not above it looks as if it were not scaled to 0 to 255. Values of
14 bits kept in 16 come to 64, of 12 bits to 16."""


def examine(splits: Splits[CachedSplit], *, refuse: bool = True) -> list[str]:
    """What to say of the images, a sentence each. Raises RecipeError where all test images that
    were looked at are training images too, unless these are not to be refused."""
    notes = _low_range(splits.train)
    shared = None if splits.test is None else shared_images(splits.train, splits.test)
    if shared is None or not shared.number:
        return notes
    if refuse and shared.number == shared.looked_at and shared.looked_at >= min(shared.of, _ENOUGH):
        raise RecipeError(f"data.test: {shared}; {OTHER_TEST_DATA}")
    return [*notes, f"{shared}; accuracies count them: take them out of one of the splits"]


@dataclass(frozen=True)
class Shared:
    """Test images that are training images too: equal pixels, or equal files."""

    number: int
    looked_at: int
    """Test images that were looked for among the training images."""
    of: int
    """All test images."""
    example: tuple[str, str]
    """What one is called in the test and in the training split."""

    def __str__(self) -> str:
        which = "test images" if self.looked_at == self.of else f"looked at (of {self.of:,} in all)"
        return (
            f"{self.number:,} of {self.looked_at:,} {which} are also training images "
            f"({self.example[0]} is {self.example[1]})"
        )


def shared_images(train: CachedSplit, test: CachedSplit) -> Shared | None:
    """Test images that are in the training split too, under whatever name and place; None where
    that cannot be told cheaply.

    Images in memory are compared by their pixels, all of them. Others by their files: those of
    equal length, for as many test images as take about 3,000 comparisons. Images of a source that
    gives no files are compared with those at the same position, which finds a set that is given
    twice."""
    if _comparable(train, test):
        pairs = _equal_pixels(_rows(train), _rows(test))
        return _shared(pairs, len(test), train, test)
    if _is_mapped(train):
        return None
    known, asked = train.reader, test.reader
    if isinstance(known, HasEncoded) and isinstance(asked, HasEncoded):
        sizes, wanted = known.encoded_sizes(), asked.encoded_sizes()
        if sizes is not None and wanted is not None:
            return _shared(*_equal_files(known, asked, sizes, wanted), train, test)
    return _shared(*_equal_positions(train, test), train, test)


def _shared(pairs: Pairs, looked_at: int, train: CachedSplit, test: CachedSplit) -> Shared:
    example = ("", "")
    if pairs:
        row, other = pairs[0]
        example = (test.reader.describe(row), train.reader.describe(other))
    return Shared(len(pairs), looked_at, len(test), example)


# --- Pixels ---------------------------------------------------------------------------------------


def _is_mapped(store: CachedSplit) -> bool:
    return isinstance(store.reader.samples, np.memmap)


def _comparable(train: CachedSplit, test: CachedSplit) -> bool:
    if train.resident is None or test.resident is None:
        return False
    if (
        train.sample.dtype != test.sample.dtype
        or train.resident.shape[1:] != test.resident.shape[1:]
    ):
        return False
    return not _is_mapped(train) or train.resident.nbytes <= _MAPPED_BYTES


def _rows(store: CachedSplit) -> NDArray[np.uint8]:
    assert store.resident is not None
    return store.resident.numpy().reshape(len(store), -1).view(np.uint8)


def _equal_pixels(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> Pairs:
    """(N, K) and (M, K) bytes."""
    places = np.linspace(0, train.shape[1] - 1, _PLACES).astype(np.int64)
    keys, wanted = _keys(train, places), _keys(test, places)
    rows = np.flatnonzero(np.isin(wanted, keys))
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[order], wanted[rows])
    stops = np.searchsorted(keys[order], wanted[rows], side="right")
    few = stops - starts <= _CANDIDATES
    pairs = _equal_digests(
        train, test, np.flatnonzero(np.isin(keys, wanted[rows[~few]])), rows[~few]
    )
    for row, start, stop in zip(rows[few].tolist(), starts[few], stops[few], strict=True):
        others = order[start:stop].tolist()
        found = next((each for each in others if np.array_equal(test[row], train[each])), None)
        pairs += [] if found is None else [(row, found)]
    return sorted(pairs)


def _equal_digests(
    train: NDArray[np.uint8], test: NDArray[np.uint8], known: NDArray[np.int64],
    asked: NDArray[np.int64],
) -> Pairs:  # fmt: skip
    """The pairs among these rows of the two."""
    first: dict[bytes, int] = {}
    for row in known.tolist():
        first.setdefault(_digest(train[row]), row)
    digests = ((row, _digest(test[row])) for row in asked.tolist())
    return [(row, first[digest]) for row, digest in digests if digest in first]


def _digest(row: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(row.data, digest_size=16).digest()


def _keys(rows: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(N,) equal for equal images, and for few others."""
    words = np.ascontiguousarray(rows[:, places]).view(np.uint64)
    key = np.zeros(len(rows), dtype=np.uint64)
    for word in words.T:  # the multiplier of a 64-bit FNV hash
        key = (key ^ word) * np.uint64(0x100000001B3)
        key ^= key >> np.uint64(29)
    return key


# --- Files ----------------------------------------------------------------------------------------


def _equal_files(
    train: HasEncoded, test: HasEncoded, sizes: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[Pairs, int]:
    """sizes, wanted: (N,) and (M,) bytes of the training and the test images."""
    order = np.argsort(sizes, kind="stable")
    chosen = Order(0, 0, len(wanted))[:].numpy()
    starts = np.searchsorted(sizes[order], wanted[chosen])
    stops = np.searchsorted(sizes[order], wanted[chosen], side="right")
    stops = np.where(wanted[chosen] > 0, stops, starts)  # empty files are no images
    looked_at = max(1, int(np.searchsorted(np.cumsum(stops - starts), _COMPARED, side="right")))
    pairs = []
    for row, start, stop in zip(chosen[:looked_at].tolist(), starts, stops, strict=False):
        candidates = order[start : min(stop, start + _COMPARED)].tolist()
        if candidates and (data := _file(test, row)):
            found = next((each for each in candidates if _file(train, each) == data), None)
            pairs += [] if found is None else [(row, found)]
    return pairs, looked_at


def _file(reader: HasEncoded, index: int) -> bytes:
    """The encoded image; nothing where it cannot be read, which is found out elsewhere."""
    try:
        return bytes(reader.encoded(index))
    except (UnreadableImageError, DataError, OSError):
        return b""


# --- Positions ------------------------------------------------------------------------------------


def _equal_positions(train: CachedSplit, test: CachedSplit) -> tuple[Pairs, int]:
    count = min(len(train), len(test))
    rows = np.unique(np.linspace(0, count - 1, _ALIGNED).astype(np.int64)).tolist()
    pairs = [
        (row, row)
        for row in rows
        if np.array_equal(train.read(row).numpy(), test.read(row).numpy())
    ]
    return pairs, len(rows)


# --- Range ----------------------------------------------------------------------------------------


def _low_range(store: CachedSplit) -> list[str]:
    if not store.sample.is_image:
        return []
    last = min(len(store), _LOOKED_AT) if store.streamed else len(store)
    rows: Sequence[int] = np.unique(np.linspace(0, last - 1, _LOOKED_AT).astype(np.int64)).tolist()
    highest = max(int(store.read(row).max()) for row in rows)
    if highest > _LOW:
        return []
    how_dark = "nearly black" if highest <= _LOW // 4 else "dark"
    return [
        f"the highest value in {len(rows)} of the training images is {highest} of 255, {how_dark}: "
        "values that do not go up to 255, or of 16 bits not up to 65535 (0 and 1, class numbers, "
        "12 bits kept in 16), must be scaled first"
    ]
