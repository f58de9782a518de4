"""Both splits of a data source, as a run uses them: a test split that is divided off where the
source has none, labels as positions in the classes, and test data that is training data refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sslkit.api import DataSource, DataSourceConfig, Slot, SplitReader, StreamReader
from sslkit.errors import DataError, RecipeError, SSLKitError
from sslkit.host.plugin_errors import describe_failure, file_in_hand

from .part_reader import part_of

SplitName = Literal["train", "test"]
OTHER_TEST_DATA = "name other images, set data.test_fraction, or leave data.test out"
"""What to do where test images are training images."""

T = TypeVar("T")
Made = TypeVar("Made")

_MANY_CLASSES = 1 << 17
"""Classes that any set may name. Networks and votes have a number for each, so that a file of
a few megabytes could otherwise ask for all memory."""


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Both splits of a data source: their readers, their images once they are opened."""

    train: T
    test: T | None

    def of(self, split: SplitName) -> T | None:
        """One of them."""
        return self.train if split == "train" else self.test

    def present(self) -> dict[str, T]:
        """Those that there are, by name."""
        found = {"train": self.train}
        return found if self.test is None else {**found, "test": self.test}

    def map(self, make: Callable[[T], Made]) -> Splits[Made]:
        """What is made of each."""
        return Splits(make(self.train), None if self.test is None else make(self.test))


def notes_of(readers: Splits[SplitReader]) -> tuple[str, ...]:
    """What a person should know of them, a sentence each, once."""
    every = readers.present().values()
    return tuple(dict.fromkeys(note for reader in every for note in reader.notes))


def open_splits(data: Slot[DataSource]) -> Splits[SplitReader]:
    """Opens a data source. Raises RecipeError where there is nothing to train on, where
    `test_fraction` cannot be followed and where the test split is the training split, and what the
    source raises."""
    config = data.config
    assert isinstance(config, DataSourceConfig)
    with _naming(data, "open its train split"):
        source = data.build()
        train = source.open("train")
        if train is None or len(train) == 0:
            raise RecipeError(f"data: '{data.name}' has no training images")
    with _naming(data, "open its test split"):
        test = source.open("test")
        if test is not None and len(test) == 0:
            raise RecipeError(
                f"data.test: '{data.name}' has a test split without images; leave it out"
            )
    splits = with_classes(Splits(train, test))
    if config.test_fraction is not None and not source.divides_itself:
        return _divided(data.name, splits, config.test_fraction, config.test_seed)
    with _naming(data, "give its fingerprint"):
        _refuse_same_data(splits)
    return splits


@contextmanager
def _naming(data: Slot[DataSource], task: str) -> Iterator[None]:
    """Says which source failed in a task, where, and on which file, for what it did not foresee."""
    try:
        yield
    except (SSLKitError, MemoryError):
        raise
    except Exception as error:
        file = file_in_hand(error)
        raise DataError(
            f"data: '{data.name}' of {data.distribution} {data.version} cannot {task}"
            f"{f', reading {file}' if file else ''}: "
            f"{describe_failure(error, data.cls.__module__)}; mend the files, or the data source"
        ) from error


def _refuse_same_data(splits: Splits[SplitReader]) -> None:
    """Raises RecipeError where both have the same fingerprint."""
    train, test = splits.train, splits.test
    if test is None or len(train) != len(test):
        return
    if train.fingerprint() == test.fingerprint():
        raise RecipeError(
            f"data.test: the {len(test):,} test images are the training images (equal "
            f"fingerprints), so that every accuracy would be one on known images; {OTHER_TEST_DATA}"
        )


# --- A test split that is divided off -------------------------------------------------------------


def _divided(
    name: str, splits: Splits[SplitReader], fraction: float, seed: int
) -> Splits[SplitReader]:
    train = splits.train
    if splits.test is not None:
        raise RecipeError(
            f"data.test_fraction: '{name}' has a test split already, of {len(splits.test):,} "
            "images; leave test_fraction out, or data.test"
        )
    if train.labels is None or not (train.labels >= 0).any():
        raise RecipeError(
            f"data.test_fraction: '{name}' has no labels, and without them nothing is measured on "
            "a test split; leave it out"
        )
    chosen = test_rows(train, train.labels, fraction, seed)
    if not chosen.any():
        raise RecipeError(
            f"data.test_fraction: no class of '{name}' has two images, so that none could be kept "
            "for testing; leave it out"
        )
    parts = (np.flatnonzero(rows) for rows in (~chosen, chosen))
    return Splits(*(part_of(train, rows) for rows in parts))


def test_rows(
    reader: SplitReader, labels: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """(N,) True for the part of each class, rounded, at least one and not all of it, whose hashes
    of (seed, key) are lowest. Images without a label are not among them."""
    salt = f"test_fraction\0{seed}\0".encode()
    hashes = np.fromiter(
        (_hash(salt, reader.key(index)) for index in range(len(reader))), np.uint64, len(reader)
    )
    order = np.lexsort((hashes, labels))
    chosen = np.zeros(len(labels), dtype=np.bool_)
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    for label, start, count in zip(classes, starts, counts, strict=True):
        wanted = min(max(round(fraction * count), 1), count - 1)
        if label >= 0:
            chosen[order[start : start + wanted]] = True
    return chosen


def _hash(salt: bytes, key: str) -> int:
    encoded = salt + key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


# --- Labels ---------------------------------------------------------------------------------------


def with_classes(splits: Splits[SplitReader]) -> Splits[SplitReader]:
    """The same readers with checked labels. Where they name no classes, these are the values that
    occur in either split, and labels become positions among them: memory goes by their number, not
    by the largest. Raises DataError."""
    readers = splits.present().values()
    for reader in readers:
        _check_labels(reader)
        _check_classes(reader, sum(map(len, readers)))
    if any(reader.class_names is not None for reader in readers):
        return splits
    given = [  # numpy joins int64 and uint64 as floats
        np.asarray(reader.labels).astype(np.int64, copy=False)
        for reader in readers
        if reader.labels is not None
    ]
    values = np.unique(np.concatenate(given)) if given else np.empty(0, dtype=np.int64)
    values = values[values >= 0]
    if not len(values):
        return splits
    if values[-1] == len(values) - 1:  # positions already
        names = tuple(map(str, range(len(values))))
        for reader in readers:
            reader.class_names = None if reader.labels is None else names
        return splits
    return splits.map(partial(_on_classes, values))


def _on_classes(values: NDArray[np.int64], reader: SplitReader) -> SplitReader:
    if reader.labels is None:
        return reader
    labels = np.asarray(reader.labels)
    positions = np.where(labels < 0, -1, np.searchsorted(values, labels)).astype(np.int64)
    return part_of(reader, None, positions, tuple(map(str, values)))


def _check_labels(reader: SplitReader) -> None:
    if reader.labels is None:
        return
    if isinstance(reader, StreamReader):
        raise DataError(
            "data: the source gave labels for a stream, which has none; leave them out, and name "
            "labelled images in the `data` of an entry of `evaluate`"
        )
    labels = np.asarray(reader.labels)
    if labels.shape != (len(reader),):
        raise DataError(
            f"data: the source gave {len(labels)} labels for {len(reader)} images; "
            "valid is one each; correct the data source"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"data: the source gave labels of type {labels.dtype}; valid are whole numbers; "
            "correct the data source"
        )
    names = reader.class_names
    highest = np.iinfo(np.int64).max if names is None else len(names) - 1
    wrong = np.flatnonzero((labels < -1) | (labels > highest))
    if len(wrong):
        raise DataError(
            f"data: {reader.describe(int(wrong[0]))} has label {labels[wrong[0]]}; valid is 0 to "
            f"{highest}, and -1 for none; correct the data source"
        )


def _check_classes(reader: SplitReader, num_samples: int) -> None:
    named, most = len(reader.class_names or ()), max(_MANY_CLASSES, num_samples)
    if named > most:
        raise DataError(
            f"data: the source names {named:,} classes for {num_samples:,} {reader.sample.noun}s; "
            f"valid are up to {most:,}; correct the data source, or leave its labels out"
        )
