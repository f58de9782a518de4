"""What a data source promises of what it opens: samples, labels and names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import SkipTest

import numpy as np

from sslkit.api import SplitReader, StreamReader
from sslkit.data.cached_split import CachedSplit
from sslkit.data.examine import shared_images
from sslkit.data.splits import Splits, with_classes
from sslkit.errors import SSLKitError

from .dataset_bench import equal, opened, positions, sample_of
from .fingerprint_laws import FingerprintLaws
from .laws import LawBrokenError, UntriedError, law, refuse
from .reader_laws import OPEN, READ
from .small_runs import listed

_FEW = 8
"""Samples that opening may read, to learn of their size."""
_SHARED = 0.01
"""Part of the test images that may be training images: sets in use have some."""
_OFF = 0.1
"""What rounding by class may add to the part that is kept for testing, or take from it."""
_NAMED = 100_000
_IN_MEMORY = 1 << 28
_NEIGHBOURS = 400


class DatasetLaws(FingerprintLaws):
    """The laws of `DataSource`."""

    @law(
        "sort what the file system lists, and draw nothing while a split is opened",
        needs=(*READ, "reads-are-independent", "labels-fit-the-samples"),
    )
    def opens_the_same_again(self) -> None:
        """Opened twice, a split has the same samples, labels, classes and names in the same
        order."""
        again = opened(self.source())
        reader = self.train
        refuse(len(again) != len(reader), f"{len(reader)} samples, then {len(again)}")
        refuse(not _same_labels(reader, again), "other labels")
        names = [tuple(each.class_names or ()) for each in (reader, again)]
        refuse(names[0] != names[1], f"classes {listed(names[0])}, then {listed(names[1])}")
        for index in positions(reader):
            same = equal(sample_of(reader, index), sample_of(again, index))
            refuse(not same or reader.key(index) != again.key(index), f"another sample {index}")

    @law(
        "read headers or an index in `open`, and samples in `read`: a run opens its data several "
        "times",
        needs=OPEN,
    )
    def opening_reads_few_samples(self) -> None:
        """`open` is cheap: it does not read the samples."""
        reader = self.train
        cls, count = type(reader), 0
        usual: Callable[..., Any] = cls.read

        def counted(self: Any, index: int) -> Any:
            nonlocal count
            count += 1
            return usual(self, index)

        own = "read" in vars(cls)
        cls.read = counted  # type: ignore[method-assign]
        try:
            opened(self.source())
        finally:
            if own:
                cls.read = usual  # type: ignore[method-assign]
            else:
                del cls.read
        too_many = count > max(_FEW, len(reader) // 2)
        refuse(too_many, f"it read {count} of {len(reader)} samples")

    @law(
        "give one whole number for each sample, -1 for none, within class_names where there are "
        "any",
        needs=OPEN,
    )
    def labels_fit_the_samples(self) -> str:
        """Where there are labels, each sample has one: a whole number from 0, or -1 for none, below
        the number of `class_names` where these are given; test labels count in the same classes."""
        source = self.source()
        train = opened(source)
        test = source.open("test")
        both = [reader for reader in (train, test) if reader is not None]
        for reader in both:
            names = reader.class_names
            odd = isinstance(names, str) or any(not isinstance(n, str) for n in names or ())
            refuse(odd, f"class_names is {names!r:.100}")
        named = [tuple(reader.class_names) for reader in both if reader.class_names is not None]
        refuse(len(set(named)) > 1, "the classes of the test split are named otherwise")
        if all(reader.labels is None for reader in both):
            raise SkipTest("it has no labels")
        try:
            with_classes(Splits(train, test))
        except SSLKitError as error:
            raise LawBrokenError(str(error)) from error
        found = train.labels
        return "" if found is None else f"{len(set(np.asarray(found).tolist()) - {-1})} classes"

    @law(
        "give a key that follows from the sample, such as its path below the folder, and no line "
        "break in describe",
        needs=(*OPEN, "labels-fit-the-samples"),
    )
    def names_tell_samples_apart(self) -> None:
        """`key` gives each sample a text of its own, and `describe` a line, for every position."""
        for name, reader in self.splits():
            keys = [reader.key(index) for index in range(min(len(reader), _NAMED))]
            refuse(not all(isinstance(key, str) for key in keys), f"{name}: keys that are no text")
            first: dict[str, int] = {}
            for index, key in enumerate(keys):
                same = first.setdefault(key, index)
                refuse(
                    same != index,
                    f"{name}: samples {same} and {index} have the key {key!r}; of {len(keys):,} "
                    f"samples {len(set(keys)):,} have one of their own",
                )
            for index in positions(reader):
                text = reader.describe(index)
                odd = not isinstance(text, str) or not text or "\n" in text
                refuse(odd, f"{name} {index} is described as {text!r}")

    @law(
        "split by something that the sample keeps, and look for duplicates before",
        needs=(*READ, "labels-fit-the-samples", "reads-are-independent"),
    )
    def test_images_are_no_training_images(self) -> str:
        """Test samples are not training samples, but for one in a hundred: accuracies would be
        those on known images."""
        train, test = self.train, self.test
        if test is None or isinstance(train, StreamReader):
            raise SkipTest("it has no test split" if test is None else "it is a stream")
        stores = [
            CachedSplit(
                reader, max_corrupt_fraction=1.0, seed=0, num_threads=0, retry_waits=(),
                resident_bytes=_IN_MEMORY,
            )
            for reader in (train, test)
        ]  # fmt: skip
        shared = shared_images(*stores)
        if shared is None:
            raise UntriedError(
                "it is too large to look for test images among training images; try a part of it"
            )
        refuse(shared.number > _SHARED * shared.looked_at, str(shared))
        return str(shared) if shared.number else f"{shared.looked_at:,} test samples looked for"

    @law(
        "follow test_fraction and test_seed in `open`, or leave divides_itself out, and the host "
        "divides by `key`",
        needs=(*OPEN, "labels-fit-the-samples"),
    )
    def follows_test_fraction(self) -> str:
        """One that says `divides_itself` keeps that part of its samples for testing that
        `test_fraction` says."""
        if not self.subject.slot.cls.divides_itself:
            raise SkipTest("it leaves that to sslkit")
        parts = []
        for fraction in (0.25, 0.5):
            source = self.source(test_fraction=fraction)
            train, test = len(opened(source)), len(source.open("test") or ())
            parts.append(test / (train + test))
            refuse(
                abs(parts[-1] - fraction) > _OFF,
                f"with {fraction:g} it keeps {test:,} of {train + test:,} for testing",
            )
        return f"{parts[0]:.0%} of 25 %"

    def notes(self) -> Iterator[str]:
        """How far labels follow pixels."""
        reader = self.train
        if reader.labels is None or isinstance(reader, StreamReader):
            return
        rows = positions(reader, _NEIGHBOURS)
        found = [(sample_of(reader, row), reader.labels[row]) for row in rows]
        known = [(s.ravel(), n) for s, n in found if s is not None and n >= 0]
        if len({values.shape for values, _ in known}) != 1 or len(known) < 2:
            return
        values = np.stack([values for values, _ in known]).astype(np.float64)
        labels = np.array([label for _, label in known])
        square = (values**2).sum(axis=1)
        distances = square[:, None] + square - 2.0 * values @ values.T
        np.fill_diagonal(distances, np.inf)
        agree = float((labels[distances.argmin(axis=1)] == labels).mean())
        chance = float(sum((labels == label).mean() ** 2 for label in set(labels.tolist())))
        yield (
            f"of {len(known)} samples {agree:.0%} have the label of the one that is most like them "
            f"by its values; by chance {chance:.0%} would: both are about equal where labels stand "
            "in another order than samples, or values say little of labels"
        )


def _same_labels(one: SplitReader, other: SplitReader) -> bool:
    if one.labels is None or other.labels is None:
        return one.labels is other.labels
    return np.array_equal(one.labels, other.labels)
