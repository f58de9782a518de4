"""image_folder on real files."""

import os
import shutil

import numpy as np
import pytest

from sslkit.api import UnreadableImageError
from sslkit.builtin.sources.image_folder import ImageFolder
from sslkit.data.cached_split import CachedSplit
from sslkit.errors import DataError, RecipeError


def source(train, **fields):
    return ImageFolder(ImageFolder.Config(train=train, **fields))


@pytest.fixture
def write(tmp_path, encoded):
    """write("train/cat/1.png", ...) makes image files below tmp_path and returns it."""

    def make(*names, **options):
        for number, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
            path.write_bytes(encoded(number, kind, **options))
        return tmp_path

    return make


def names_of(reader, root):
    return [reader.describe(i).removeprefix(f"{root}/") for i in range(len(reader))]


def test_class_folders(write):
    root = write("train/dog/b.PNG", "train/dog/a.jpg", "train/cat/x.jpeg", "test/dog/1.png")
    data = source(root / "train", test=root / "test")
    train, test = data.open("train"), data.open("test")
    assert names_of(train, root / "train") == ["cat/x.jpeg", "dog/a.jpg", "dog/b.PNG"]
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 1]
    assert test.labels.tolist() == [1]
    assert train.details == {"labels": "folders", "ignored_files": 0, "ignored_endings": {}}
    assert train.image_size == (40, 48)
    assert train.read(0).shape == (40, 48, 3)
    assert source(root / "train", channels=1).open("train").read(0).shape == (40, 48, 1)
    assert source(root / "train").open("test") is None


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.png"],
        ["one/a.png", "one/b.png"],
        ["one/a.png", "two/b.png", "c.png"],
        ["one/a.png", "two/deep/b.png"],
        ["one/x/a.png", "two/y/b.png"],
    ],
)
def test_auto_finds_no_labels_in_other_layouts(write, names):
    root = write(*names)
    reader = source(root).open("train")
    assert reader.labels is None
    assert reader.class_names is None
    assert sorted(names_of(reader, root)) == sorted(names)
    assert reader.details["labels"] == "none"


def test_labels_field_decides(write):
    root = write("one/a.png", "two/b.png")
    assert source(root, labels="none").open("train").labels is None
    (root / "two" / "b.png").rename(root / "one" / "b.png")
    single = source(root, labels="folders").open("train")
    assert single.class_names == ("one",)
    write("one/deep/c.png")
    with pytest.raises(RecipeError, match=r"data.train: .*one/deep/c.png is not in a class folder"):
        source(root, labels="folders").open("train")


def test_test_folder_without_the_classes_of_train_is_refused(write):
    root = write("train/a/1.png", "train/b/1.png", "test/b/1.png", "test/c/1.png")
    with pytest.raises(RecipeError, match=r"data.test: .* lacks: c; valid are the 2 folders"):
        source(root / "train", test=root / "test").open("test")
    shutil.rmtree(root / "test")
    write("test/1.png")
    with pytest.raises(RecipeError, match=r"data.test: .*test/1.png is not in a class folder"):
        source(root / "train", test=root / "test").open("test")


def test_hidden_and_other_files_are_left_out(write):
    root = write("a/1.png", "b/1.png", ".git/1.png", "a/.thumb.png")
    (root / "a" / "notes.txt").write_text("x")
    (root / "b" / "Thumbs.db").write_bytes(b"x")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    reader = source(root).open("train")
    assert names_of(reader, root) == ["a/1.png", "b/1.png"]
    assert reader.details["ignored_files"] == 3


def test_links_are_followed_and_loops_end(write, tmp_path):
    root = write("data/a/1.png", "data/b/1.png", "elsewhere/1.png", "elsewhere/2.png")
    (root / "data" / "a" / "up").symlink_to(root / "data")
    (root / "data" / "c").symlink_to(root / "elsewhere")
    reader = source(root / "data").open("train")
    assert names_of(reader, root / "data") == ["a/1.png", "b/1.png", "c/1.png", "c/2.png"]


def test_damaged_files_are_replaced_and_reported(write, encoded):
    root = write(*[f"{'ab'[i % 2]}/{i:02}.jpg" for i in range(20)])
    (root / "a" / "00.jpg").write_bytes(b"")
    (root / "b" / "01.jpg").write_text("renamed text")
    whole = (root / "a" / "02.jpg").read_bytes()
    (root / "a" / "02.jpg").write_bytes(whole[: len(whole) // 2])
    reader = source(root).open("train")
    with pytest.raises(UnreadableImageError):
        reader.read(0)
    store = CachedSplit(reader, max_corrupt_fraction=0.2, seed=0, num_threads=2)
    assert store.resident is not None
    report = store.report()
    assert report["num_unreadable"] == 3
    assert [entry["image"].rsplit("/", 1)[1] for entry in report["unreadable"]] == [
        "00.jpg",
        "02.jpg",
        "01.jpg",
    ]
    with pytest.raises(DataError, match=r"above data.max_corrupt_fraction 0.001; first: .*00.jpg"):
        CachedSplit(reader, max_corrupt_fraction=0.001, seed=0, num_threads=0)


def test_file_that_vanishes_stops_the_run(write):
    root = write("1.png", "2.png", "3.png")
    reader = source(root).open("train")
    (root / "2.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*2.png: .*No such file"):
        CachedSplit(reader, max_corrupt_fraction=1.0, seed=0, num_threads=0, retry_waits=(0.0,))


def test_fingerprint_follows_content_and_not_copies(write, tmp_path):
    root = write("data/a/1.png", "data/b/1.png")
    first = source(root / "data").open("train").fingerprint()
    shutil.copytree(root / "data", root / "copy")
    os.utime(root / "copy" / "a" / "1.png", (0, 0))
    assert source(root / "copy").open("train").fingerprint() == first
    path = root / "copy" / "b" / "1.png"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert source(root / "copy").open("train").fingerprint() != first
    (root / "data" / "b" / "1.png").rename(root / "data" / "b" / "2.png")
    assert source(root / "data").open("train").fingerprint() != first
    assert source(root / "data", channels=1).open("train").fingerprint() != first


def test_wrong_paths_are_one_line_with_advice(write):
    root = write("train/a/1.png")
    with pytest.raises(RecipeError, match=r"^data.train: .*trian does not exist; .*/train\?$") as e:
        source(root / "trian").open("train")
    assert e.value.exit_code == 2
    with pytest.raises(RecipeError, match=r"did you mean .*/train"):
        source(root / "trainn" / "deeper" / "still").open("train")
    with pytest.raises(RecipeError, match="is a file; expected a folder"):
        source(root / "train" / "a" / "1.png").open("train")
    (root / "empty").mkdir()
    (root / "empty" / "readme.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"holds no images \(1 other files\)"):
        source(root / "empty").open("train")
    with pytest.raises(RecipeError, match=r"data.test: .* does not exist"):
        source(root / "train", test=root / "nothing").open("test")


def test_folder_that_cannot_be_listed(write):
    root = write("a/1.png", "b/1.png")
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    (root / "b").chmod(0)
    try:
        with pytest.raises(DataError, match=r"cannot list .*b: Permission denied"):
            source(root).open("train")
    finally:
        (root / "b").chmod(0o755)


def test_images_of_several_sizes_have_no_common_one(write):
    root = write("1.png", "2.png")
    write("3.png", height=20)
    reader = source(root).open("train")
    assert reader.image_size is None


def test_real_photographs(photographs):
    reader = source(photographs).open("train")
    assert len(reader) == 200
    assert len(reader.class_names) == 200
    assert reader.image_size is None
    assert np.array_equal(reader.labels, np.arange(200))


# --- Odd folders ----------------------------------------------------------------------------------


def test_files_that_are_not_read_are_told_in_one_line(write):
    root = write("1.png", "2.png")
    for number in range(3):
        (root / f"leaf{number}.jpg?w=300").write_bytes(b"x")
        (root / f"{number}.heic").write_bytes(b"x")
    (root / "a.avif").write_bytes(b"x")
    (root / "README").write_bytes(b"x")
    reader = source(root).open("train")
    (note,) = reader.notes
    assert note.startswith(f"8 of 10 files in {root} are not read: 3 .heic, 3 .jpg?w=300, 1 ")
    assert "files are read that end in .bmp .gif" in note
    assert "\n" not in note
    assert reader.details["ignored_files"] == 8
    assert reader.details["ignored_endings"][".heic"] == 3
    assert source(write("only/1.png") / "only").open("train").notes == ()


def test_links_to_themselves_devices_and_fifos_are_passed_over(write):
    root = write("1.png", "2.png")
    (root / "self.png").symlink_to("self.png")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    reader = source(root).open("train")
    assert names_of(reader, root) == ["1.png", "2.png"]
    assert reader.details["ignored_files"] == 3
    assert reader.notes == ()
    (root / "1.png").unlink()
    os.mkfifo(root / "1.png")  # after the folder was listed
    with pytest.raises(UnreadableImageError, match="no regular file"):
        reader.read(0)


def test_folders_in_circles_end(write):
    root = write("1.png")
    for i in range(9):
        (root / f"d{i}").mkdir()
    for i in range(9):
        for j in range(9):
            (root / f"d{i}" / f"to{j}").symlink_to(root / f"d{j}")
    from sslkit.builtin.sources import image_files

    most, image_files._MAX_FOLDERS = image_files._MAX_FOLDERS, 1000
    try:
        with pytest.raises(
            DataError, match="more than 1,000 of them; see whether links lead in cir"
        ):
            source(root).open("train")
    finally:
        image_files._MAX_FOLDERS = most
    deep = root / "deep" / "/".join("x" * 70)
    deep.mkdir(parents=True)
    with pytest.raises(DataError, match="nested more than 64 deep"):
        source(root / "deep").open("train")


def test_names_that_are_no_utf8_work(write, encoded):
    root = write("cat/1.png", "dog/1.png", "dog/2.png")
    os.makedirs(os.fsencode(root) + b"/caf\xe9")  # noqa: PTH103
    with open(os.fsencode(root) + b"/caf\xe9/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(encoded(7))
    reader = source(root, test_fraction=0.5).open("train")
    assert reader.class_names == ("caf\\xe9", "cat", "dog")
    assert reader.describe(0) == f"{root}/caf\\xe9/\\xff.png"
    assert reader.read(0).shape == (40, 48, 3)
    assert len(reader.fingerprint()) == 16
    reader.describe(0).encode()
    from sslkit.data.splits import test_rows as rows

    assert rows(reader, reader.labels, 0.5, 0).sum() == 1


@pytest.mark.parametrize("names", [["train", "test"], ["Train", "VAL"], ["val", "test", "cat"]])
@pytest.mark.parametrize("inside", ["", "cat/"])
def test_split_folders_are_no_classes(write, names, inside):
    root = write(*(f"{name}/{inside}{i}.png" for name in names for i in range(2)))
    with pytest.raises(
        RecipeError, match=r"which are splits and not classes; write data.train=.*/"
    ):
        source(root).open("train")
    assert source(root, labels="none").open("train").labels is None
    if not inside:
        assert len(source(root, labels="folders").open("train").class_names) == len(names)


def test_a_class_may_be_called_train(write):
    root = write("train/1.png", "truck/1.png")
    assert source(root).open("train").class_names == ("train", "truck")
