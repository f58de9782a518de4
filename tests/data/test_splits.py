"""Both splits of a data source: a divided-off test split, classes, and training data as test
data."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslkit.api import DataSource, DataSourceConfig, Slot, resolve_component
from sslkit.data.cached_split import CachedSplit
from sslkit.data.examine import examine, shared_images
from sslkit.data.part_reader import part_of
from sslkit.data.splits import Splits, open_splits, test_rows, with_classes
from sslkit.errors import DataError, RecipeError
from sslkit.host.plugins import load_plugins

test_rows.__test__ = False  # its name is no test's


def data(name, **fields):
    return resolve_component(load_plugins().registry, "dataset", {"name": name, **fields})


def store(reader):
    return CachedSplit(reader, max_corrupt_fraction=0.5, seed=0, num_threads=0)


def stores(block):
    both = open_splits(block).map(store)
    return both.train, both.test


@pytest.fixture
def folders(tmp_path):
    """folders("train", 12, classes=3, first=0, size=8): images below tmp_path, unlike each
    other."""

    def make(name, number, classes=2, first=0, size=8, kind="png"):
        for i in range(number):
            folder = tmp_path / name / (f"c{i % classes}" if classes else "")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(first + i).integers(0, 256, (size, size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{first + i:04}.{kind}")
        return tmp_path / name

    return make


# --- test_fraction --------------------------------------------------------------------------------


def keys_of(reader):
    return [reader.key(i) for i in range(len(reader))]


def test_fraction_keeps_a_part_of_each_class(folders):
    block = data("image_folder", train=str(folders("all", 40, classes=4)), test_fraction=0.2)
    splits = open_splits(block)
    assert (len(splits.train), len(splits.test)) == (32, 8)
    assert np.bincount(splits.test.labels).tolist() == [2, 2, 2, 2]
    assert np.bincount(splits.train.labels).tolist() == [8, 8, 8, 8]
    assert splits.train.class_names == splits.test.class_names == ("c0", "c1", "c2", "c3")
    assert not set(keys_of(splits.train)) & set(keys_of(splits.test))
    assert shared_images(*stores(block)).number == 0
    for split in (splits.train, splits.test):
        for i in range(len(split)):
            where = split.describe(i)
            assert np.array_equal(split.read(i), np.asarray(Image.open(where)))
            assert split.key(i).startswith(split.class_names[split.labels[i]])
    assert splits.train.fingerprint() != splits.test.fingerprint()


def test_fraction_depends_on_seed_and_name_alone(folders, tmp_path):
    root = folders("all", 40, classes=4)
    kept = keys_of(open_splits(data("image_folder", train=str(root), test_fraction=0.3)).test)
    root.rename(tmp_path / "moved")
    (tmp_path / "moved" / "c4").mkdir()  # a new class and what comes before others in the listing
    Image.new("RGB", (8, 8)).save(tmp_path / "moved" / "c4" / "x.png")
    moved = open_splits(data("image_folder", train=str(tmp_path / "moved"), test_fraction=0.3))
    assert keys_of(moved.test) == kept
    other = data("image_folder", train=str(tmp_path / "moved"), test_fraction=0.3, test_seed=1)
    assert keys_of(open_splits(other).test) != kept


def test_fraction_is_that_of_independent_hashes(list_reader):
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    labels = [0] * 7 + [1] + [2] * 2 + [3] * 30
    reader = list_reader([image] * 40, labels)
    chosen = test_rows(reader, reader.labels, 0.1, 0)
    # rounded, at least one, and never all of a class
    assert [int(chosen[reader.labels == label].sum()) for label in range(4)] == [1, 0, 1, 3]
    turned = list_reader([image] * 40, labels[::-1])
    turned.key = lambda index: str(39 - index)
    assert test_rows(turned, turned.labels, 0.1, 0).tolist() == chosen[::-1].tolist()
    missing = reader.labels.copy()
    missing[10:] = -1
    assert not test_rows(reader, missing, 0.5, 0)[10:].any()


def test_fraction_that_cannot_be_followed_is_refused(folders):
    root, test = folders("train", 8), folders("test", 4, first=100)
    with pytest.raises(RecipeError, match=r"data.test_fraction: .* has a test split already, of 4"):
        open_splits(data("image_folder", train=str(root), test=str(test), test_fraction=0.5))
    with pytest.raises(RecipeError, match=r"data.test_fraction: .* has no labels"):
        open_splits(data("image_folder", train=str(root), labels="none", test_fraction=0.5))
    single = folders("single", 2, classes=2)
    with pytest.raises(RecipeError, match=r"data.test_fraction: no class .* has two images"):
        open_splits(data("image_folder", train=str(single), test_fraction=0.5))


def test_digits_divide_themselves_as_ever():
    splits = open_splits(data("digits", size=8, test_fraction=0.5))
    assert len(splits.train) + len(splits.test) == 1797
    assert abs(len(splits.test) - 899) < 6


def test_part_of_a_mapped_file_is_not_read_as_a_whole(tmp_path, list_reader):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4)).astype(np.uint8)
    images.tofile(tmp_path / "x")
    reader = list_reader(list(images.transpose(0, 2, 3, 1)), [0, 1] * 3, (4, 4))
    reader.samples = np.memmap(tmp_path / "x", np.uint8, "r", 0, images.shape)
    part = part_of(reader, np.array([1, 4]))
    assert part.samples is None
    assert np.array_equal(store(part).resident.numpy(), images[[1, 4]])
    reader.samples = images
    assert np.array_equal(part_of(reader, np.array([1, 4])).samples, images[[1, 4]])


# --- Classes --------------------------------------------------------------------------------------


def nameless(list_reader, labels):
    reader = list_reader([np.zeros((2, 2, 3), dtype=np.uint8)] * len(labels))
    reader.labels = np.asarray(labels)
    return reader


def test_classes_are_the_values_that_occur(list_reader):
    train = nameless(list_reader, [2**60, 7, -1, 2000])
    test = nameless(list_reader, np.array([7, 8], dtype=np.uint64))
    splits = with_classes(Splits(train, test))
    train, test = splits.train, splits.test
    assert train.class_names == test.class_names == ("7", "8", "2000", str(2**60))
    assert train.labels.tolist() == [3, 0, -1, 2]
    assert test.labels.tolist() == [0, 1]
    assert store(train).num_classes == 4


def test_labels_that_are_none_are_refused(list_reader):
    for labels, message in (
        ([0, 1, 2], "3 labels for 2 images"),
        ([0.5, 1.0], "labels of type float64"),
        ([0, -2], "image picture-1 has label -2|picture-1 has label -2"),
    ):
        reader = nameless(list_reader, [0, 0])
        reader.labels = np.asarray(labels)
        with pytest.raises(DataError, match=message):
            with_classes(Splits(reader, None))
    named = list_reader([np.zeros((2, 2, 3), dtype=np.uint8)] * 2, [0, 1])
    named.labels = np.array([0, 2])
    with pytest.raises(DataError, match="has label 2; valid is 0 to 1"):
        with_classes(Splits(named, None))


# --- Test images that are training images ---------------------------------------------------------


def test_same_images_in_every_guise_are_refused(folders, tmp_path):
    root = folders("train", 40)
    for test in (root, folders("train", 40) / ".", tmp_path / "train" / "c0"):
        with pytest.raises(RecipeError, match=r"data.test: .* test images are training images"):
            open_splits(data("image_folder", train=str(root), test=str(test), labels="none"))
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(RecipeError, match=r"data.test: .*link is the folder of the training"):
        open_splits(data("image_folder", train=str(root), test=str(tmp_path / "link")))
    folders("copy", 40)
    with pytest.raises(RecipeError, match=r"40 test images are the training images \(equal finger"):
        open_splits(data("image_folder", train=str(root), test=str(tmp_path / "copy")))


@pytest.mark.parametrize("sizes", [(8, 8), (8, 9)], ids=["in memory", "decoded as needed"])
def test_images_under_other_names_are_found(folders, tmp_path, sizes):
    root = folders("train", 40, size=sizes[0])
    folders("train", 2, first=90, size=sizes[1])  # other sizes keep images out of memory
    test = folders("test", 10, first=200, size=sizes[0])
    files = sorted(root.rglob("00*.png"))
    for number, path in enumerate(files[:7]):
        (test / "c1" / f"renamed{number}.png").write_bytes(path.read_bytes())
    block = data("image_folder", train=str(root), test=str(test))
    train, held = stores(block)
    assert (train.resident is None) == (sizes[0] != sizes[1])
    found = shared_images(train, held)
    assert (found.number, found.looked_at, found.of) == (7, 17, 17)
    (note,) = examine(Splits(train, held))
    assert note.startswith("7 of 17 test images are also training images (")
    for path in test.rglob("0*.png"):
        path.unlink()
    with pytest.raises(RecipeError, match=r"data.test: 7 of 7 test images are also training"):
        examine(Splits(*stores(block)))


def test_images_of_a_source_without_files_are_found(list_reader, photo):
    images = [photo(i, 6, 6 + i % 2) for i in range(20)]
    train, same = store(list_reader(images)), store(list_reader(images[:15]))
    other = store(list_reader([photo(100 + i, 6, 6 + i % 2) for i in range(15)]))
    assert shared_images(train, same).number == 15
    assert shared_images(train, other).number == 0


def test_equal_lengths_are_no_equal_files(folders):
    """Uncompressed files all have one length: only their content tells."""
    train, test = folders("train", 30, kind="bmp"), folders("test", 20, first=50, kind="bmp")
    folders("train", 1, first=99, size=9, kind="bmp")
    found = shared_images(*stores(data("image_folder", train=str(train), test=str(test))))
    assert (found.number, found.looked_at) == (0, 20)


def test_parquet_rows_are_compared_in_memory_and_on_demand(tmp_path, encoded):
    import pyarrow as pa
    from pyarrow import parquet

    for heights in ((40, 40), (40, 44)):
        rows = [encoded(i, height=heights[i % 2]) for i in range(20)]
        train, test = str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")
        parquet.write_table(pa.table({"image": rows}), train)
        parquet.write_table(pa.table({"image": [*rows[12:4:-1], encoded(99)]}), test)
        found = shared_images(*stores(data("parquet", train=train, test=test)))
        assert (found.number, found.of) == (8, 9)
        assert found.example == (f"{test} row 0", f"{train} row 12") or heights[1] == 44
    with pytest.raises(RecipeError, match=r"data.test: .*a.parquet is a file of data.train too"):
        open_splits(data("parquet", train=str(tmp_path / "*.parquet"), test=train))


@pytest.mark.slow  # 10 seconds
def test_real_cifar_shares_few_images(cifar):
    block = data("parquet", train=str(cifar / "train.parquet"), test=str(cifar / "test.parquet"))
    train, test = stores(block)
    found = shared_images(train, test)
    exact = {bytes(row) for row in train.resident.numpy().reshape(len(train), -1)}
    expected = sum(bytes(row) in exact for row in test.resident.numpy().reshape(len(test), -1))
    assert (found.number, found.looked_at) == (expected, 10000)


def test_dark_images_are_told(tmp_path):
    for i in range(6):
        mask = np.random.default_rng(i).integers(0, 2, (8, 8)).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
    reader = open_splits(data("image_folder", train=str(tmp_path))).train
    (note,) = examine(Splits(store(reader), None))
    assert note.startswith("the highest value in 6 of the training images is 1 of 255")
    Image.new("L", (8, 8), 65).save(tmp_path / "0.png")
    assert examine(open_splits(data("image_folder", train=str(tmp_path))).map(store)) == []


@pytest.mark.parametrize(
    ("bits", "said"),
    [(8, "is 1 of 255, nearly black"), (10, "is 4 of 255, nearly black"),
     (12, "is 16 of 255, nearly black"), (14, "is 64 of 255, dark"), (15, None), (16, None)],
)  # fmt: skip
def test_fewer_bits_than_a_file_has_room_for_are_told(tmp_path, bits, said):
    """As cameras and microscopes leave them: the whole range of so many bits, in 16."""
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 2**bits, (16, 16)).astype(np.uint16)
        values[0, 0] = 2**bits - 1
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    notes = examine(
        Splits(store(open_splits(data("image_folder", train=str(tmp_path))).train), None)
    )
    assert [said in note for note in notes] == ([] if said is None else [True]), notes


def test_folder_that_holds_the_other_is_refused(folders, tmp_path):
    folders("all/train", 6, classes=0)
    folders("all/test", 4, classes=0, first=50)
    outer, inner = str(tmp_path / "all"), str(tmp_path / "all" / "test")
    with pytest.raises(RecipeError, match=r"data.test: .*test lies inside the folder of the train"):
        open_splits(data("image_folder", train=outer, test=inner, labels="none"))
    with pytest.raises(RecipeError, match=r"data.test: .*all holds the folder of the training"):
        open_splits(data("image_folder", train=inner, test=outer, labels="none"))
    assert Path(inner).exists()


def test_more_classes_than_samples_are_refused(list_reader, photo):
    """A pack of 12 MB names four million: votes and networks would have a number for each."""
    train = list_reader([photo(0), photo(1)], [0, 1])
    train.class_names = [""] * ((1 << 17) + 1)
    with pytest.raises(DataError, match="names 131,073 classes for 2 images; valid are up to"):
        with_classes(Splits(train, None))
    train.class_names = [""] * (1 << 17)
    assert with_classes(Splits(train, None)).train is train


# --- What a source did not foresee ----------------------------------------------------------------


class Plates(DataSource):
    """A data source of a plugin that reads its list in one of several ways."""

    class Config(DataSourceConfig):
        train: Path
        way: str = "lines"

    def open(self, split):
        path = self.config.train
        if self.config.way == "lines":
            with path.open(encoding="utf-8") as file:
                return list(file)
        if self.config.way == "text":
            return path.read_text(encoding="utf-8")
        if self.config.way == "csv":
            with path.open(encoding="utf-8") as file:
                return list(csv.DictReader(file))
        if self.config.way == "missing":
            return (path / "none").read_bytes()
        if self.config.way == "test" and split == "train":
            return self.reader
        return {}["plate"]


def plates(tmp_path, way):
    path = tmp_path / "plates.csv"
    path.write_bytes(b"plate,well\n1,A\n2,\xff\n")
    return Slot(Plates, "plates", Plates.Config(train=path, way=way), "sslkit-plates", "1.2"), path


@pytest.mark.parametrize(
    ("way", "names_file", "reason"),
    [
        ("lines", True, "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        ("text", True, "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        ("csv", True, "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        ("missing", False, "NotADirectoryError: [Errno 20] Not a directory: "),
        ("key", True, "KeyError: 'plate'"),
    ],
)
def test_what_a_source_did_not_foresee_names_it_its_file_and_its_line(
    tmp_path, way, names_file, reason
):
    block, path = plates(tmp_path, way)
    with pytest.raises(DataError) as error:
        open_splits(block)
    message = str(error.value)
    file = f", reading {path}" if names_file else ""
    start = f"data: 'plates' of sslkit-plates 1.2 cannot open its train split{file}: {reason}"
    assert message.startswith(start), message
    assert re.search(
        rf"\({re.escape(__file__)}:\d+\); mend the files, or the data source$", message
    )
    assert "\n" not in message


def test_the_test_split_and_the_fingerprint_are_named_too(tmp_path, list_reader, monkeypatch):
    block, _ = plates(tmp_path, "test")
    reader = list_reader([np.zeros((8, 8, 3), np.uint8)] * 3)
    Plates.reader = reader
    with pytest.raises(
        DataError, match=r"cannot open its test split, reading .*: KeyError: 'plate'"
    ):
        open_splits(block)

    def fail():
        raise ValueError("no digest")

    reader.fingerprint = fail
    monkeypatch.setattr(Plates, "open", lambda self, split: reader)
    with pytest.raises(DataError, match="cannot give its fingerprint: ValueError: no digest"):
        open_splits(block)
