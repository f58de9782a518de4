"""Parquet files of a few kilobytes that say they hold gigabytes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sslkit.builtin.sources.parquet import Parquet, ParquetReader
from sslkit.builtin.sources.parquet_columns import Shard
from sslkit.errors import DataError

MB = 1 << 20


def repeated(value: Any, rows: int) -> pa.Array:
    """A column whose rows all hold one value, which is in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def written(path: Path, image: pa.Array, label: pa.Array) -> Path:
    table = pa.table({"image": image, "label": label})
    # Without Arrow's own schema, by which the column would stay a dictionary in memory.
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < MB
    return path


def opened(path: Path, **fields: Any) -> ParquetReader:
    reader = Parquet(Parquet.Config(train=path, **fields)).open("train")
    assert reader is not None
    return reader


@pytest.mark.parametrize("cache", [False, True], ids=["in memory", "cache"])
def test_one_image_that_stands_for_all_rows(tmp_path: Path, encoded: Any, cache: bool) -> None:
    """1.5 GB of images in 3 kB; the folder of the cache stays empty, too."""
    rows = 1500
    image = repeated(encoded(0) + bytes(MB), rows)
    path = written(tmp_path / "x.parquet", image, pa.array(np.zeros(rows, np.int64)))
    reader = opened(path, **({"cache": tmp_path / "cache"} if cache else {}))
    with pytest.raises(
        DataError, match=r"column image takes more than \d+ MiB in memory"
    ) as caught:
        reader.read(0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.arrow"))


def test_images_are_read_few_at_a_time_where_they_may_be_large(
    tmp_path: Path, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row group says no more than what all of its values take: each may be as large."""
    read: list[int] = []
    whole = parquet.ParquetFile.iter_batches

    def counted(file: Any, rows: int, *rest: Any) -> Any:
        read.append(rows)
        return whole(file, rows, *rest)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    image = repeated(encoded(0) + bytes(50 * MB), 60)
    path = written(tmp_path / "x.parquet", image, pa.array(np.zeros(60, np.int64)))
    with pytest.raises(DataError, match="takes more than 100 MiB"):
        opened(path)  # reads the first rows
    assert read == [1]


def test_what_the_footer_says_is_refused_unread(
    tmp_path: Path, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pa.array([encoded(0) + bytes(10 * MB) + bytes([i]) for i in range(12)], pa.binary())
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": image}), path, compression="zstd", use_dictionary=False)
    monkeypatch.delattr(parquet.ParquetFile, "iter_batches")
    with pytest.raises(DataError, match="column image takes more than 120 MiB in memory"):
        opened(path)


def test_a_label_that_stands_for_all_rows_is_in_memory_once(tmp_path: Path, encoded: Any) -> None:
    rows, long = 1000, "x" * MB
    for kind in (pa.string(), pa.large_string()):
        label = repeated(long, rows).cast(pa.dictionary(pa.int32(), kind))
        path = written(tmp_path / "x.parquet", repeated(encoded(0), rows), label)
        tracemalloc.start()
        reader = opened(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reader.class_names == (long,)
        assert reader.labels is not None
        assert not reader.labels.any()
        assert peak < 50 * MB


def test_more_rows_than_bytes_are_refused(tmp_path: Path, encoded: Any) -> None:
    rows = 10**6
    path = written(
        tmp_path / "x.parquet", repeated(encoded(0), rows), pa.array(np.zeros(rows, np.int8))
    )
    with pytest.raises(DataError, match=r"says it has 1,000,000 rows, in [0-9]+,[0-9]+ bytes"):
        opened(path)


def test_text_labels_keep_their_order_over_files(tmp_path: Path, encoded: Any) -> None:
    """By their bytes, as before; of a file with one dictionary for each row group."""
    texts = ["b", "a", None, "\U0001f98a", "é", "", "b", "Z"]
    images = pa.array([encoded(0)] * len(texts), pa.binary())
    for number, names in enumerate((texts, texts[::-1])):
        parquet.write_table(
            pa.table({"image": images, "label": pa.array(names)}),
            tmp_path / f"train-{number}.parquet",
            row_group_size=3,
        )
    reader = Parquet(Parquet.Config(train=tmp_path)).open("train")
    assert reader is not None
    assert reader.class_names == ("", "Z", "a", "b", "é", "\U0001f98a")
    one = [3, 2, -1, 5, 4, 0, 3, 1]
    assert reader.labels is not None
    assert reader.labels.tolist() == [*one, *one[::-1]]
    assert reader.labels.dtype == np.int64


def test_files_of_photographs_are_far_below_the_bounds(tmp_path: Path) -> None:
    """A shard of the hub: an image takes what it takes in the file."""
    shard = Shard(tmp_path, 1000, None, {"image": 500 * MB}, 480 * MB)
    shard.refuse_growth("image")
    shard.refuse_growth("image", 15 * 480 * MB)
    with pytest.raises(DataError, match="MiB in memory"):
        shard.refuse_growth("image", 17 * 480 * MB)
