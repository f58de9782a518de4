"""Writing packs: every image of a data source, decoded once, in one file that training maps.

The bytes depend on the data and on the settings, not on the number of threads, and not on how often
the process was killed and started again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

import sslkit
from sslkit.api import DataSource, DataSourceConfig, Preprocess, Slot
from sslkit.data.cached_split import CachedSplit
from sslkit.data.examine import examine
from sslkit.data.pack_format import (
    ALIGNMENT,
    CHECKSUM_BYTES,
    MAX_DESCRIPTION_BYTES,
    PREFIX_BYTES,
    Description,
    PackFile,
    Settings,
    Split,
    Unreadable,
    aligned,
    block_images,
    checksum,
    end_of,
    prefix_of,
    read_pack,
    tables_digest,
)
from sslkit.data.pack_journal import BlockRecord, Journal
from sslkit.data.resize import prepare_for_encoder
from sslkit.data.splits import Splits, open_splits
from sslkit.errors import DataError, RecipeError
from sslkit.threads import in_order

_SEED = 0
"""Seed of the choice of what replaces an unreadable image: a pack is the same for all runs."""

Progress = Callable[[str, int, int], None]
"""Called with the split, the number of its images that are done, and that of all."""


def write_pack(
    data: Slot[DataSource],
    out: Path,
    settings: Settings,
    *,
    num_threads: int,
    on_progress: Progress | None = None,
) -> PackFile:
    """Packs both splits of a data source into `out`, which appears when it is complete.

    `on_progress` is called for each split at its start, then after each block of images.

    A process that is killed leaves `out.partial` and `out.journal`; the next call with the same
    data and settings goes on there. Raises RecipeError for what the user can correct, DataError
    where the data cannot be read or the file cannot be written."""
    _refuse_existing(out)
    stores = _open_stores(data, num_threads)
    plan = _plan(data, settings, stores)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out, plan)
        with only_writer(out):
            _refuse_existing(out)  # another process may just have finished
            _write(plan, stores, out, num_threads, on_progress or (lambda *_: None))
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); mend that, then give the same "
            "command again: it goes on where it was"
        ) from error
    return read_pack(out)


def _write(
    plan: Description,
    stores: Splits[CachedSplit],
    out: Path,
    num_threads: int,
    on_progress: Progress,
) -> None:
    """Writes the file, or what is missing of it."""
    pixels_end = max(s.pixels + s.num_images * s.image_bytes for s in plan.splits().values())
    journal, present = Journal(out, plan, pixels_end), stores.present()
    try:
        for name, split in plan.splits().items():
            packing = _SplitPacking(name, split, present[name], plan.settings, journal)
            packing.take_over(journal.done[name])
            on_progress(name, packing.images_done, split.num_images)
            with closing(packing.run(num_threads)) as progress:
                for done in progress:
                    on_progress(name, done, split.num_images)
        _write_end(journal, plan, stores)
        journal.finish(out)
    finally:
        journal.close()


class _SplitPacking:
    """The packing of one split."""

    def __init__(
        self, name: str, split: Split, store: CachedSplit, settings: Settings, journal: Journal
    ) -> None:
        self._name = name
        self._split = split
        self._store = store
        self._settings = settings
        self._journal = journal

    @property
    def images_done(self) -> int:
        """Images in the blocks that are written."""
        blocks = len(self._journal.done[self._name])
        return min(blocks * self._split.block_images, self._split.num_images)

    def take_over(self, records: Sequence[BlockRecord]) -> None:
        """Learns what an earlier process found out."""
        for entry in (entry for record in records for entry in record.unreadable):
            self._store.take_over(entry.index, entry.reason, entry.replaced_by)

    def run(self, num_threads: int) -> Generator[int, None, None]:
        """Packs the blocks that are missing; yields the number of images that are done."""
        todo = range(len(self._journal.done[self._name]), self._split.num_blocks)
        try:
            with closing(in_order(self._pack_block, todo, num_threads=num_threads)) as packed:
                for record in packed:
                    self._journal.add(record)
                    yield self.images_done
        finally:
            self._journal.flush()

    def _pack_block(self, number: int) -> BlockRecord:
        first, count = self._split.block(number)
        block = torch.empty((count, *self._split.shape[1:]), dtype=torch.uint8)
        for row, target in enumerate(block):
            target.copy_(self._fitted(first + row))
        found = self._store.unreadable(range(first, first + count))
        pixels = block.numpy().tobytes()
        self._journal.write(self._split.pixels + first * self._split.image_bytes, pixels)
        return BlockRecord(
            split=self._name,
            block=number,
            checksum=checksum(pixels).hexdigest(),
            unreadable=tuple(map(Unreadable.model_validate, found)),
        )

    def _fitted(self, index: int) -> Tensor:
        """An image as it is stored, (C, H, W) uint8."""
        image = self._store.read(index)
        size = self._settings.size
        if size is not None:
            how = Preprocess(size, size, self._settings.interpolation, (), ())
            return prepare_for_encoder(image[None], how)[0]
        if image.shape != self._split.shape[1:]:
            raise RecipeError(
                f"--size: {self._store.reader.describe(index)} has {_pixels(*image.shape[1:])}, "
                f"others {_pixels(*self._split.shape[2:])}; a pack holds images of one size: give "
                "--size, such as --size 256"
            )
        return image


# --- What is going to be written ------------------------------------------------------------------


def _open_stores(data: Slot[DataSource], num_threads: int) -> Splits[CachedSplit]:
    """The splits, images read on demand."""
    config, splits = data.config, open_splits(data)
    assert isinstance(config, DataSourceConfig)
    for reader in splits.present().values():
        if not reader.sample.is_image:
            raise RecipeError(
                f"data: a pack holds images, and the samples of '{data.name}' are {reader.sample}; "
                "give them as one array (`SplitReader.samples`), which may be a memory-mapped file"
            )
    return splits.map(
        partial(
            CachedSplit,
            max_corrupt_fraction=config.max_corrupt_fraction,
            seed=_SEED,
            num_threads=num_threads,
            resident_bytes=0,
        )
    )


def _plan(data: Slot[DataSource], settings: Settings, stores: Splits[CachedSplit]) -> Description:
    """The description, without what only the pixels tell."""
    splits: dict[str, Split] = {}
    for name, store in stores.present().items():
        start = aligned(end_of(splits)) if splits else ALIGNMENT
        splits[name] = _planned_split(name, store, settings, start)
    # A limit on damage is no property of the images; whoever raises it can go on.
    source = {key: value for key, value in data.dump().items() if key != "max_corrupt_fraction"}
    return Description(
        sslkit=sslkit.__version__,
        source=source,
        settings=settings,
        train=splits["train"],
        test=splits.get("test"),
    )


def _planned_split(name: str, store: CachedSplit, settings: Settings, start: int) -> Split:
    if settings.size is not None:
        height, width = settings.size, settings.size
    elif store.image_size is not None:
        height, width = store.image_size
    else:
        raise RecipeError(
            f"--size: the {name} images differ in size, and a pack holds images of one size; "
            "give --size, such as --size 256"
        )
    count, image_bytes = len(store), store.channels * height * width
    labels = aligned(start + count * image_bytes, 8)
    return Split(
        num_images=count,
        channels=store.channels,
        height=height,
        width=width,
        block_images=block_images(image_bytes),
        pixels=start,
        labels=None if store.labels is None else labels,
        checksums=labels if store.labels is None else labels + 8 * count,
        class_names=store.class_names,
        source_fingerprint=store.fingerprint,
    )


def _check_space(out: Path, plan: Description) -> None:
    """Raises RecipeError where the pack would not fit on the disk."""
    partial = out.with_name(out.name + ".partial")
    # Blocks of the file system: the file has its full length from the start, with holes.
    present = getattr(partial.stat(), "st_blocks", 0) * 512 if partial.exists() else 0
    needed = end_of(plan.splits()) + MAX_DESCRIPTION_BYTES - present
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise RecipeError(
            f"--out: {out} needs {needed / 1e6:,.1f} MB and {out.parent} has {free / 1e6:,.1f} MB "
            "free; choose another disk or a smaller --size"
        )


# --- The end of the file --------------------------------------------------------------------------


def _write_end(journal: Journal, plan: Description, stores: Splits[CachedSplit]) -> None:
    """Labels, checksums, description, and last the prefix, which makes the file a pack."""
    splits, present = {}, stores.present()
    for name, split in plan.splits().items():
        labels = None if split.labels is None else _label_bytes(present[name])
        records = journal.done[name]
        checksums = b"".join(bytes.fromhex(record.checksum) for record in records)
        assert len(checksums) == CHECKSUM_BYTES * split.num_blocks
        if labels is not None and split.labels is not None:
            journal.write(split.labels, labels)
        journal.write(split.checksums, checksums)
        tables = [checksum(table) for table in (labels, checksums) if table is not None]
        found = tuple(entry for record in records for entry in record.unreadable)
        splits[name] = split.model_copy(
            update={"tables_digest": tables_digest(tables), "unreadable": found}
        )
    notes = tuple(examine(stores, refuse=False))
    whole = plan.model_copy(update={**splits, "notes": notes})
    description = whole.model_dump_json(indent=1).encode()
    if len(description) > MAX_DESCRIPTION_BYTES:
        raise DataError(
            f"data: {sum(len(s.unreadable) for s in splits.values())} images could not be read, "
            "too many for a pack to list; repair or remove them"
        )
    place = aligned(end_of(splits))
    journal.cut(end_of(splits))  # and out again: nothing is left of what stood behind
    journal.cut(place)
    for start, end in _gaps(splits):
        journal.write(start, bytes(end - start))
    journal.write(place, description)
    journal.sync()
    journal.write(0, prefix_of(description, place))


def _gaps(splits: dict[str, Split]) -> Iterator[tuple[int, int]]:
    """(start, end) of what lies between prefix and sections. No checksum covers it, and a file that
    was begun may hold anything there."""
    end = PREFIX_BYTES
    sections = (section for split in splits.values() for section in split.sections())
    for _, start, size, _ in sorted(sections, key=lambda section: section[1]):
        if start > end:
            yield end, start
        end = start + size


def _label_bytes(store: CachedSplit) -> bytes:
    assert store.labels is not None
    labels: NDArray[np.int64] = store.labels.numpy()
    return labels.astype("<i8").tobytes()


# --- Around it ------------------------------------------------------------------------------------


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise RecipeError(f"--out: {out} exists already; delete it or give another name")


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keeps a second process away from a file that is being written. Raises RecipeError where one
    is at work."""
    lock = FileLock(out.with_name(out.name + ".lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(f"--out: another process is writing {out}; wait or stop it") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _pixels(height: int, width: int) -> str:
    return f"{width} x {height} pixels"
