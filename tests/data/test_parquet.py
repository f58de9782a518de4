"""parquet on real files, written with pyarrow."""

import io
import json
import os
import shutil
import socket

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from sslkit.api import UnreadableImageError
from sslkit.builtin.sources import parquet as source_module
from sslkit.builtin.sources.parquet import Parquet
from sslkit.data.cached_split import CachedSplit
from sslkit.errors import DataError, RecipeError

HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def source(train, **fields):
    return Parquet(Parquet.Config(train=train, **fields))


@pytest.fixture
def write(tmp_path, encoded):
    """write("a.parquet", rows...): a file in the hub's layout; columns override or add."""

    def make(name, count=6, names=None, first=0, row_group_size=4, **columns):
        images = [{"bytes": encoded(first + i), "path": f"{first + i}.png"} for i in range(count)]
        arrays = {
            "image": pa.array(images, HUB_IMAGE),
            "label": pa.array([(first + i) % 3 for i in range(count)], pa.int64()),
            **columns,
        }
        table = pa.table({key: value for key, value in arrays.items() if value is not None})
        if names is not None:
            features = {"image": {"_type": "Image"}, **names}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, row_group_size=row_group_size)
        return path

    return make


def class_label(*names):
    return {"_type": "ClassLabel", "names": list(names)}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_hub_layout(write, encoded):
    path = write("train.parquet", names={"label": class_label("cat", "dog", "owl")})
    reader = source(path).open("train")
    assert len(reader) == 6
    assert reader.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert reader.class_names == ("cat", "dog", "owl")
    assert reader.image_size == (40, 48)
    assert reader.details == {"image_column": "image", "label_column": "label"}
    for index in (5, 0, 3):
        assert np.array_equal(reader.read(index), pixels(encoded(index)))
    assert reader.describe(5) == f"{path} row 5"
    assert source(path).open("test") is None
    assert source(path, channels=1).open("train").read(0).shape == (40, 48, 1)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("form", ["list", "folder", "pattern"])
def test_shards_in_every_form(write, encoded, tmp_path, form, cached):
    shards = [write(f"set/part-{i}.parquet", count=5, first=5 * i) for i in range(3)]
    given = {
        "list": shards,
        "folder": tmp_path / "set",
        "pattern": tmp_path / "set" / "part-*.parquet",
    }[form]
    cache = tmp_path / "cache" if cached else None
    reader = source(given, cache=cache).open("train")
    assert len(reader) == 15
    assert reader.labels.tolist() == [i % 3 for i in range(15)]
    assert reader.class_names == ("0", "1", "2")
    assert all(np.array_equal(reader.read(i), pixels(encoded(i))) for i in range(15))
    assert reader.describe(7) == f"{shards[1]} row 2"
    if cached:
        (copy,) = (tmp_path / "cache").iterdir()
        written = copy.stat().st_mtime_ns
        again = source(given, cache=cache).open("train")
        assert np.array_equal(again.read(14), pixels(encoded(14)))
        assert copy.stat().st_mtime_ns == written


def test_size_limit_asks_for_a_cache(write, monkeypatch, tmp_path):
    path = write("train.parquet")
    monkeypatch.setattr(source_module, "IN_MEMORY_BYTES", 1000)
    with pytest.raises(RecipeError, match=r"data.cache: the images of data.train take"):
        source(path).open("train")
    assert len(source(path, cache=tmp_path / "cache").open("train")) == 6


def test_plain_binary_and_string_labels(write, encoded):
    path = write(
        "plain.parquet",
        image=None,
        label=None,
        jpg=pa.array([encoded(i) for i in range(6)], pa.large_binary()),
        kind=pa.array(["b", "a", "b", "c", "a", "b"]),
    )
    assert source(path).open("train").labels is None
    reader = source(path, label_column="kind").open("train")
    assert reader.labels.tolist() == [1, 0, 1, 2, 0, 1]
    assert reader.class_names == ("a", "b", "c")
    assert np.array_equal(reader.read(2), pixels(encoded(2)))


def test_test_labels_take_the_positions_of_train(write):
    train = write("train.parquet", label=pa.array(["b", "a", "c", "a", "b", "c"]))
    test = write("test.parquet", label=pa.array(["c", "b", "c", "c", "b", "b"]))
    reader = source(train, test=test).open("test")
    assert reader.labels.tolist() == [2, 1, 2, 2, 1, 1]
    assert reader.class_names == ("a", "b", "c")
    with pytest.raises(RecipeError, match=r"data.test: holds classes that data.train lacks: a"):
        source(test, test=train).open("test")


def test_unlabelled_splits(write):
    hidden = write("test.parquet", label=pa.array([-1] * 6), names={"label": class_label("a", "b")})
    assert source(hidden).open("train").labels is None
    assert source(write("none.parquet", label=None)).open("train").labels is None
    assert source(write("some.parquet"), label_column=None).open("train").labels is None


def test_columns_that_cannot_be_told_apart(write, encoded):
    images = pa.array([encoded(i) for i in range(6)])
    double = write("double.parquet", other=images)
    with pytest.raises(RecipeError, match=r"several columns of images: image, other; name"):
        source(double).open("train")
    assert source(double, image_column="other").open("train").details["image_column"] == "other"
    with pytest.raises(RecipeError, match=r"'x' holds no images .* valid are image, other"):
        source(double, image_column="x").open("train")
    fine = write("fine.parquet", label=None, fine_label=pa.array([0] * 6), labels=pa.array([1] * 6))
    with pytest.raises(RecipeError, match=r"data.label_column: .* fine_label, labels; name one"):
        source(fine).open("train")
    with pytest.raises(RecipeError, match=r"valid are fine_label, labels, `auto`, or null"):
        source(fine, label_column="lable").open("train")
    bare = write("bare.parquet", image=None)
    with pytest.raises(RecipeError, match=r"no column of images .* columns are label \(int64\)"):
        source(bare).open("train")
    floats = write("floats.parquet", label=pa.array([0.5] * 6))
    with pytest.raises(RecipeError, match="holds double; valid are integers, booleans and str"):
        source(floats).open("train")


def test_wrong_labels_are_named(write):
    outside = write("outside.parquet", names={"label": class_label("a", "b")})
    with pytest.raises(DataError, match=r"row 2 has label 2 in column label; valid is 0 to 1"):
        source(outside).open("train")
    below = write("below.parquet", label=pa.array([0, -2, 1, 0, 1, 2]))
    with pytest.raises(DataError, match="label -2; valid are whole numbers from 0, and -1 or null"):
        source(below).open("train")


def test_wrong_files_are_one_line(write, tmp_path):
    path = write("set/train.parquet")
    with pytest.raises(RecipeError, match=r"data.train: .*; did you mean .*/set/train.parquet\?"):
        source(path.with_name("trian.parquet")).open("train")
    with pytest.raises(RecipeError, match="holds no Parquet files"):
        source(tmp_path).open("train")
    with pytest.raises(RecipeError, match="holds no Parquet files"):
        source(tmp_path / "set" / "x-*.parquet").open("train")
    text = tmp_path / "text.parquet"
    text.write_text("PAR1 this is not Parquet PAR1")
    with pytest.raises(DataError, match=r"text.parquet is not a readable Parquet file") as caught:
        source(text).open("train")
    assert "\n" not in str(caught.value)
    half = tmp_path / "half.parquet"
    half.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        source(half).open("train")
    other = write("other.parquet", label=pa.array(["a"] * 6))
    with pytest.raises(DataError, match="shards of one split must agree"):
        source([path, other]).open("train")


def test_damage_inside_a_file_is_one_line(write, tmp_path):
    data = bytearray(write("train.parquet", count=40, row_group_size=40).read_bytes())
    data[4:200] = b"\xff" * 196
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged.parquet is not a readable Parquet") as caught:
        source(damaged).open("train")
    assert "\n" not in str(caught.value)


def test_damage_behind_the_first_rows_stops_before_training(write, tmp_path):
    data = bytearray(write("train.parquet", count=400, row_group_size=200).read_bytes())
    middle = parquet.ParquetFile(tmp_path / "train.parquet").metadata.row_group(0).column(0)
    start = middle.data_page_offset + middle.total_compressed_size * 3 // 4
    data[start : start + 300] = b"\xff" * 300
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(data)

    def load():
        reader = source(damaged).open("train")
        CachedSplit(
            reader, max_corrupt_fraction=0.001, seed=0, num_threads=0, retry_waits=(0.0, 0.0)
        )

    with pytest.raises(DataError, match=r"damaged.parquet") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_file_without_rows(write):
    reader = source(write("none.parquet", count=0)).open("train")
    assert len(reader) == 0
    assert reader.image_size is None
    with pytest.raises(DataError, match="no images"):
        CachedSplit(reader, max_corrupt_fraction=0.0, seed=0, num_threads=0)


def test_empty_rows_and_paths(write, encoded, tmp_path):
    (tmp_path / "there.png").write_bytes(encoded(9))
    rows = [
        {"bytes": encoded(0), "path": None},
        None,
        {"bytes": None, "path": "there.png"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
    ]
    path = write("holes.parquet", count=5, image=pa.array(rows, HUB_IMAGE))
    reader = source(path).open("train")
    assert np.array_equal(reader.read(2), pixels(encoded(9)))
    for bad in (1, 3, 4):
        with pytest.raises(UnreadableImageError):
            reader.read(bad)
    store = CachedSplit(reader, max_corrupt_fraction=0.6, seed=0, num_threads=0)
    assert set(store.corrupt) == {1, 3, 4}
    assert store.labels.tolist() == [0, *store.labels[1:2].tolist(), 2, *store.labels[3:].tolist()]


def test_fingerprint_follows_content_and_not_names(write, tmp_path):
    path = write("a.parquet")
    first = source(path).open("train").fingerprint()
    shutil.copy(path, tmp_path / "copy.parquet")
    assert source(tmp_path / "copy.parquet").open("train").fingerprint() == first
    assert source(write("b.parquet", first=1)).open("train").fingerprint() != first
    assert source(path, label_column=None).open("train").fingerprint() != first
    assert source([path, tmp_path / "copy.parquet"]).open("train").fingerprint() != first


def test_real_cifar(cifar):
    data = source(cifar / "train.parquet", test=cifar / "test.parquet")
    train, test = data.open("train"), data.open("test")
    assert (len(train), len(test)) == (50000, 10000)
    assert train.image_size == (32, 32)
    assert train.class_names[3] == test.class_names[3] == "cat"
    assert np.bincount(test.labels).tolist() == [1000] * 10
    table = parquet.read_table(cifar / "train.parquet").slice(31415, 1)
    assert np.array_equal(train.read(31415), pixels(table["img"][0].as_py()["bytes"]))
    assert train.labels[31415] == table["label"][0].as_py()


@pytest.mark.slow  # 2 seconds
def test_real_cifar_becomes_resident_whole(cifar):
    reader = source(cifar / "test.parquet").open("train")
    store = CachedSplit(reader, max_corrupt_fraction=0.0, seed=0, num_threads=2)
    assert store.resident.shape == (10000, 3, 32, 32)
    for index in (0, 127, 128, 9999):
        assert torch.equal(
            store.resident[index], torch.from_numpy(reader.read(index)).permute(2, 0, 1)
        )


# --- Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "labels", "names"),
    [
        *(
            (pa.array([1, 0, 2, 1, 0, 2], kind()), [1, 0, 2, 1, 0, 2], ("0", "1", "2"))
            for kind in (
                pa.int8, pa.int16, pa.int32, pa.int64, pa.uint8, pa.uint16, pa.uint32, pa.uint64,
                pa.float16, pa.float32, pa.float64,
            )
        ),
        (
            pa.array([10, 2000, 2**31 - 7, 2000, 10, 10]),
            [0, 1, 2, 1, 0, 0],
            ("10", "2000", "2147483641"),
        ),
        (
            pa.array([2**64 - 1, 5, 5, 2**63, None, 5], pa.uint64()),
            [2, 0, 0, 1, -1, 0],
            ("5", str(2**63), str(2**64 - 1)),
        ),
        (pa.array([1.0, None, float("nan"), 3.0, -1.0, 1.0]), [0, -1, -1, 1, -1, 0], ("1", "3")),
        (pa.array([True, False, None, True, True, False]), [1, 0, -1, 1, 1, 0], ("false", "true")),
        (pa.array(["b", None, "a", "b", "", "a"]), [2, -1, 1, 2, 0, 1], ("", "a", "b")),
        (pa.array(["b", "a"] * 3).dictionary_encode(), [1, 0] * 3, ("a", "b")),
        (pa.array(["b", "a"] * 3, pa.string_view()), [1, 0] * 3, ("a", "b")),
        (pa.array([10, 9, 100, 9, 9, 9]), [1, 0, 2, 0, 0, 0], ("9", "10", "100")),
        (pa.array([3, -1, None, 3, 4, 4]), [0, -1, -1, 0, 1, 1], ("3", "4")),
        (pa.nulls(6), None, None),
        (pa.array([None] * 6, pa.int32()), None, None),
        (pa.array([float("nan")] * 6), None, None),
    ],
    ids=str,
)  # fmt: skip
def test_labels_of_every_type(write, column, labels, names):
    reader = source(write("x.parquet", label=column)).open("train")
    assert (None if reader.labels is None else reader.labels.tolist()) == labels
    assert reader.class_names == names
    assert reader.labels is None or reader.labels.dtype == np.int64


def test_labels_of_other_types_are_refused(write):
    for column, message in (
        (pa.array([0.5] * 6), "holds double; .* and numbers without a fraction"),
        (pa.array([1e300] * 6), "holds double"),
        (pa.array([[1]] * 6), "holds list"),
    ):
        with pytest.raises(RecipeError, match=message):
            source(write("x.parquet", label=column)).open("train")


def test_names_and_missing_labels(write):
    label = pa.array([1, None, 0, -1, 1, 1], pa.int32())
    train = write("a.parquet", label=label, names={"label": class_label("cat", "dog", "owl")})
    test = write("b.parquet", label=pa.array(["owl", None, "cat", "cat", "dog", "owl"]))
    reader = source(train, test=test).open("train")
    assert reader.labels.tolist() == [1, -1, 0, -1, 1, 1]
    assert reader.class_names == ("cat", "dog", "owl")
    held = source(train, test=test).open("test")
    assert held.labels.tolist() == [2, -1, 0, 0, 1, 2]
    assert held.class_names == ("cat", "dog", "owl")


# --- Which files ----------------------------------------------------------------------------------


def rows_of(reader):
    return sorted({reader.describe(i).rsplit("/", 1)[1].split(" ")[0] for i in range(len(reader))})


def test_a_folder_of_several_splits_gives_each_its_own(write, tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(f"data/{name}.parquet")
    (tmp_path / "data" / "._train-00000-of-00002.parquet").write_bytes(b"\0\5\x16\7Mac OS X")
    folder = tmp_path / "data"
    both = source(folder, test=folder)
    assert rows_of(both.open("train")) == [f"train-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert rows_of(both.open("test")) == ["test-00000-of-00001.parquet"]
    with pytest.raises(
        RecipeError, match=r"speak of several splits: test \(1\), train \(2\); write"
    ):
        source(folder / "*.parquet").open("train")
    listed = source([folder / "train-*.parquet", folder / "test-*.parquet"]).open("train")
    assert len(listed) == 18
    write("data/validation-0.parquet")
    assert len(source(folder).open("train")) == 12
    with pytest.raises(
        RecipeError, match=r"data.test: .*several splits: test .*, train .*, validatio"
    ):
        source(folder / "train-*.parquet", test=folder).open("test")
    write("data/more.parquet")
    with pytest.raises(RecipeError, match=r"and more.parquet, which says no split"):
        source(folder).open("train")


def test_names_that_speak_of_one_split_or_none(write, tmp_path):
    for name in ("test-0", "test-1"):
        write(f"a/{name}.parquet")
    for name in ("part-0", "latest", "contest"):
        write(f"b/{name}.parquet")
    for name in ("cifar_train", "cifar_val"):
        write(f"c/{name}.parquet")
    assert len(source(tmp_path / "a").open("train")) == 12
    assert len(source(tmp_path / "b").open("train")) == 18
    assert rows_of(source(tmp_path / "c").open("train")) == ["cifar_train.parquet"]
    held = source(tmp_path / "c", test=tmp_path / "c").open("test")
    assert rows_of(held) == ["cifar_val.parquet"]


def test_devices_and_fifos_are_not_opened(write, tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    for path in (tmp_path / "pipe.parquet", "/dev/zero"):
        with pytest.raises(RecipeError, match="is no regular file"):
            source(path).open("train")
    write("x.parquet")
    assert len(source(tmp_path).open("train")) == 6


def test_paths_of_rows_stay_in_the_folder(write, encoded, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(1))
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "in.png").write_bytes(encoded(2))
    (tmp_path / "set" / "link.png").symlink_to(outside)
    (tmp_path / "set" / "near.png").symlink_to("in.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "set" / "socket.png"))
    given = {
        "in.png": None,
        "near.png": None,
        "sub/../in.png": None,
        "gone.png": "does not exist",
        "in.png/x": "does not exist",
        "https://example.invalid/0.png": "an address, https://example.invalid/0.png; nothing is "
        "down",
        "file:///etc/passwd": "an address",
        str(outside): "outside of the folder",
        "../outside.png": "outside of the folder",
        "link.png": "outside of the folder",
        "/dev/zero": "outside of the folder",
        "pipe.png": "no regular file",
        "socket.png": "no regular file|No such device",
        "sub": "no regular file|is no file",
        "a\0b": "is no file",
        "": "outside of the folder",
    }
    rows = pa.array([{"bytes": None, "path": path} for path in given], HUB_IMAGE)
    count = len(given)
    path = write("set/x.parquet", count=count, image=rows, label=pa.array([0] * count))
    reader = source(path).open("train")
    for index, reason in enumerate(given.values()):
        if reason is None:
            assert np.array_equal(reader.read(index), pixels(encoded(2)))
        else:
            with pytest.raises(UnreadableImageError, match=reason):
                reader.read(index)
    store = CachedSplit(reader, max_corrupt_fraction=0.9, seed=0, num_threads=0)
    assert store.read(3).shape == (3, 40, 48)


def test_rows_of_addresses_are_refused_by_name_before_the_start(write):
    rows = pa.array([{"bytes": None, "path": f"s3://x/{i}.png"} for i in range(6)], HUB_IMAGE)
    path = write("x.parquet", image=rows)
    with pytest.raises(
        RecipeError, match=r"data: the rows of .*x.parquet hold no images: .* s3://x/5.png; n"
    ):
        source(path).open("train")


def test_many_columns_make_a_short_message(write):
    many = {f"column{i}": pa.array([i] * 6) for i in range(200)}
    path = write("x.parquet", image=None, **many)
    with pytest.raises(RecipeError, match=r"column8 \(int64\) and 191 more; use another") as caught:
        source(path).open("train")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("names", [5, "abc", {"a": 1}, [], None])
def test_odd_metadata_names_no_classes(write, names):
    path = write("x.parquet", names={"label": {"_type": "ClassLabel", "names": names}})
    assert source(path).open("train").class_names == ("0", "1", "2")


def test_more_names_than_the_type_of_the_labels_holds(write):
    names = class_label(*(f"c{i}" for i in range(300)))
    label = pa.array([0, 255, 1, 2, 3, 4], pa.uint8())
    reader = source(write("x.parquet", label=label, names={"label": names})).open("train")
    assert reader.labels.tolist() == [0, 255, 1, 2, 3, 4]
    assert len(reader.class_names) == 300


@pytest.mark.parametrize(
    "odd", [b"[" * 100_000, b'{"info": 1}', b"\xff", b'{"info": {"info": 1e999}}']
)
def test_metadata_that_nobody_writes_is_passed_over(tmp_path, encoded, odd):
    image, label = pa.array([encoded(0), encoded(1)]), pa.array([0, 1])
    table = pa.table({"image": image, "label": label})
    path = tmp_path / "odd.parquet"
    parquet.write_table(table.replace_schema_metadata({"huggingface": odd}), path)
    reader = source(path).open("train")
    assert reader.labels.tolist() == [0, 1]
