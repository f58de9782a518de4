"""Access to single encoded images in Parquet shards."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.api import UnreadableImageError
from sslkit.builtin.sources.parquet_columns import Shard, column_bytes, whole_file
from sslkit.builtin.sources.paths import sample_positions
from sslkit.builtin.sources.regular_files import is_inside, read_image_file
from sslkit.errors import DataError, RecipeError

Chunk = tuple[Any, Any]
"""Arrow arrays of the bytes and of the paths (None where there are none) of some rows."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_SAMPLED_BLOCKS, _BLOCK_BYTES = 16, 4096
_BATCH_ROWS, _BATCH_BYTES = 64, 64 << 20
"""Rows that are read at a time, and bytes that they take if each were as large as all of their row
group: one image can stand for all rows."""


class _AddressError(UnreadableImageError):
    """The image is somewhere in a network."""


class ImageColumn:
    """The encoded images of all shards, as Arrow buffers: no Python object per row.

    Nothing is read before the first access to a row. Then the column is read into memory or, with
    a `cache` folder, converted once to an uncompressed Arrow file there, which is memory-mapped:
    Parquet itself can be read in whole row groups only, too slow for random access. Thread-safe.
    """

    def __init__(self, shards: Sequence[Shard], name: str, cache: Path | None) -> None:
        self.shards = shards
        self.name = name
        self._cache = cache
        self._shard_ends = list(accumulate(shard.rows for shard in shards))
        self._chunks: list[Chunk] | None = None
        self._chunk_ends: list[int] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._shard_ends[-1]

    @property
    def num_bytes(self) -> int:
        """Uncompressed size of the column."""
        return sum(shard.column_bytes.get(self.name, 0) for shard in self.shards)

    def locate(self, index: int) -> tuple[Path, int]:
        """The file and the row of an image."""
        number, row = _position(self._shard_ends, index)
        return self.shards[number].path, row

    def sizes(self) -> NDArray[np.int64]:
        """(N,) bytes of each encoded image in the file; 0 for rows that have none there."""
        from pyarrow import compute

        parts = [compute.fill_null(compute.binary_length(c[0]), 0) for c in self._all_chunks()]
        joined = [part.to_numpy(zero_copy_only=False) for part in parts]
        return np.concatenate([*joined, np.empty(0)]).astype(np.int64)

    def _all_chunks(self) -> list[Chunk]:
        if self._chunks is None:
            with self._lock:
                self._chunks = self._chunks or self._opened()
        return self._chunks

    def encoded(self, index: int) -> memoryview:
        """The encoded image `index`. Raises UnreadableImageError for an empty row, and for one that
        names a file which is missing or outside of the folder of the Parquet file."""
        chunks = self._chunks if self._chunks is not None else self._all_chunks()
        number, row = _position(self._chunk_ends, index)
        return _bytes(chunks[number], row, self.locate(index)[0])

    def sample(self, most: int) -> list[memoryview]:
        """Up to `most` images: the first ones of the first and of the last row group. Raises
        RecipeError where all of them are somewhere in a network."""
        found: list[memoryview] = []
        elsewhere: _AddressError | None = None
        for shard, last in ((self.shards[0], False), (self.shards[-1], True)):
            for chunk in self._first_rows(shard, last, most // 2):
                for row in range(len(chunk[0])):
                    try:
                        found.append(_bytes(chunk, row, shard.path))
                    except _AddressError as error:
                        elsewhere = error
                    except (UnreadableImageError, OSError):
                        continue
        if elsewhere is not None and not found:
            raise RecipeError(
                f"data: the rows of {self.shards[0].path} hold no images: {elsewhere}; download "
                "the images and store them in the rows, or beside the file"
            )
        return found

    def _first_rows(self, shard: Shard, last: bool, count: int) -> list[Chunk]:
        """The first rows of the first or last row group, fewer of large images; reads only the
        pages that hold them."""
        found: list[Chunk] = []
        rows = size = 0
        with whole_file(shard.path):
            for batch in _batches(shard, self.name, last=last, most=count):
                found.append(_split(batch.column(0)))
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows >= count or size >= _BATCH_BYTES:
                    break
        return found

    def digest(self) -> bytes:
        """A hash of each shard's size, footer (rows, offsets, sizes and statistics of every column
        chunk) and 16 blocks of 4 KiB."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=16)
        for shard in self.shards:
            size = shard.path.stat().st_size
            with shard.path.open("rb") as file:
                file.seek(size - 8)
                footer = int.from_bytes(file.read(4), "little")
                file.seek(size - 8 - footer)
                digest.update(f"\0{size}\0".encode() + file.read(footer))
                for block in sample_positions(-(-size // _BLOCK_BYTES), "parquet", _SAMPLED_BLOCKS):
                    file.seek(block * _BLOCK_BYTES)
                    digest.update(file.read(_BLOCK_BYTES))
        return digest.digest()

    def _opened(self) -> list[Chunk]:
        import pyarrow as pa

        if self._cache is None:
            batches = []
            for shard in self.shards:
                with whole_file(shard.path, retried=True):
                    batches += list(_batches(shard, self.name))
        else:
            path = self._cache / f"{self.digest().hex()}.arrow"
            if not path.exists():
                self._convert(path)
            batches = pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_batches()
        chunks = [_split(batch.column(0)) for batch in batches]
        self._chunk_ends = list(accumulate(len(chunk[0]) for chunk in chunks))
        return chunks

    def _convert(self, path: Path) -> None:
        """Writes the column as an Arrow file; it appears under its name when it is complete."""
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < self.num_bytes:
            raise DataError(
                f"data.cache: {path.parent} has {free / 2**30:.1f} GiB free, but the images take "
                f"{self.num_bytes / 2**30:.1f} GiB; choose a folder on a larger disk"
            )
        temporary = path.with_suffix(".tmp")
        schema = pa.schema([self.shards[0].schema.field(self.name)])
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for shard in self.shards:
                with whole_file(shard.path, retried=True):
                    for batch in _batches(shard, self.name):
                        writer.write_batch(batch)
        temporary.replace(path)


def _batches(
    shard: Shard, name: str, *, last: bool = False, most: int = _BATCH_ROWS
) -> Iterator[Any]:
    """A column some rows at a time, read page by page: a row group may hold the whole shard. last:
    from the last row group on. most: rows at a time.

    Raises DataError where it takes far more memory than the file has bytes."""
    from pyarrow import parquet

    shard.refuse_growth(name)
    taken = 0
    with parquet.ParquetFile(shard.path, memory_map=True, pre_buffer=False) as file:
        groups = range(file.metadata.num_row_groups)
        for group in groups[-1:] if last else groups:
            size = max(1, column_bytes(file.metadata, [group]).get(name, 0))
            rows = max(1, min(most, _BATCH_ROWS, _BATCH_BYTES // size))
            for batch in file.iter_batches(rows, [group], [name]):
                taken += batch.nbytes
                shard.refuse_growth(name, taken)
                yield batch


def _position(ends: list[int], index: int) -> tuple[int, int]:
    """(part, row in it) of a row, from the running totals of the parts' lengths."""
    number = bisect_right(ends, index)
    return number, index - (ends[number - 1] if number else 0)


def _bytes(chunk: Chunk, row: int, shard: Path) -> memoryview:
    binary, paths = chunk
    value = binary[row]
    if value.is_valid:
        return memoryview(value.as_buffer())
    if paths is not None and paths[row].is_valid:
        return memoryview(_named_file(shard.parent, paths[row].as_py()))
    raise UnreadableImageError("the row holds no image")


def _named_file(folder: Path, name: str) -> bytes:
    """The file that a row names, if it lies in the folder of the Parquet file."""
    if _URL.match(name):
        raise _AddressError(f"the row names an address, {name[:80]}; nothing is downloaded")
    path = f"{folder}/{name}"
    try:
        if Path(name).is_absolute() or not is_inside(os.path.realpath(folder), path):
            raise UnreadableImageError(
                f"the row names {name[:80]}, outside of the folder of its Parquet file"
            )
        return read_image_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableImageError(f"the row names {name[:80]}, which does not exist") from error
    except (ValueError, IsADirectoryError) as error:  # such as a name with a zero byte
        raise UnreadableImageError(f"the row names {name[:80]!r}, which is no file") from error


def _split(column: Any) -> Chunk:
    """The bytes and paths of some rows."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column, None
    names = [field.name for field in column.type]
    children = dict(zip(names, column.flatten(), strict=True))
    return children["bytes"], children.get("path")
