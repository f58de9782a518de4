"""The source `series_folder`: layouts, damaged and hostile files."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sslkit_series.npy import MAX_VALUES, BadSeriesError, read_series
from sslkit_series.series_folder import SeriesFolder, SeriesReader

from sslkit.api import UnreadableImageError
from sslkit.errors import DataError, RecipeError


def write(root: Path, *names: str, shape: tuple[int, ...] = (2, 16)) -> Path:
    for position, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full(shape, position, dtype=np.float32))
    return root


def opened(train: Path, split: Any = "train", **fields: Any) -> SeriesReader:
    found = SeriesFolder(SeriesFolder.Config(train=train, **fields)).open(split)
    assert found is not None
    return found


# --- Layouts -------------------------------------------------------------------------------------


def test_classes_are_folders(tmp_path: Path) -> None:
    root = write(tmp_path / "train", "b/2.npy", "a/1.npy", "b/1.npy")
    found = opened(root)
    assert found.class_names == ("a", "b")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1]
    assert [found.key(index) for index in range(3)] == ["a/1.npy", "b/1.npy", "b/2.npy"]
    assert found.sample.shape == (2, 16)
    assert [found.read(index)[0, 0] for index in range(3)] == [1.0, 2.0, 0.0]
    assert found.notes == ()


def test_without_labels_files_lie_at_any_depth(tmp_path: Path) -> None:
    root = write(tmp_path / "train", "1.npy", "a/b/2.npy", shape=(16,))
    found = opened(root, labels="none")
    assert (len(found), found.labels, found.sample.shape) == (2, None, (1, 16))


def test_the_test_split_has_the_classes_of_the_training_split(tmp_path: Path) -> None:
    train = write(tmp_path / "train", "a/1.npy", "b/1.npy", "c/1.npy")
    test = write(tmp_path / "test", "c/9.npy")
    found = opened(train, "test", test=test)
    assert found.labels is not None
    assert found.labels.tolist() == [2]
    with pytest.raises(RecipeError, match=r"data.test: .* has classes that data.train lacks: d"):
        opened(train, "test", test=write(tmp_path / "other", "d/1.npy"))
    assert SeriesFolder(SeriesFolder.Config(train=train)).open("test") is None


def test_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "train", "a/1.npy", "b/1.npy")
    (root / "a/notes.txt").write_text("x")
    (root / ".hidden").mkdir()
    (root / "a/._1.npy").write_bytes(b"x")
    secret = write(tmp_path / "elsewhere", "secret.npy") / "secret.npy"
    (root / "a/link.npy").symlink_to(secret)
    (root / "c").symlink_to(secret.parent)
    found = opened(root)
    assert [found.key(index) for index in range(len(found))] == ["a/1.npy", "b/1.npy"]
    assert found.class_names == ("a", "b")
    (note,) = found.notes
    assert "3 files and links" in note


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "does not exist; expected a folder of .npy files"),
        (("a/1.txt",), "holds no series (1 other files)"),
        (("1.npy", "a/1.npy"), "is not in a class folder"),
        (("a/b/1.npy",), "is not in a class folder"),
    ],
)
def test_wrong_layouts_are_refused_in_one_line(
    tmp_path: Path, names: tuple[str, ...], said: str
) -> None:
    root = tmp_path / "train"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    with pytest.raises(RecipeError) as raised:
        opened(root)
    assert said in str(raised.value)
    assert str(raised.value).startswith("data.train: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("inside", ["", "a"])
def test_splits_that_hold_each_other_are_refused(tmp_path: Path, inside: str) -> None:
    root = write(tmp_path / "train", "a/1.npy")
    with pytest.raises(RecipeError, match="hold each other"):
        opened(root, "test", test=root / inside)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    root = write(tmp_path / "train", "a/1.npy", "b/1.npy")
    before = opened(root).fingerprint()
    assert opened(root).fingerprint() == before
    np.save(root / "b/1.npy", np.full((2, 16), 7, dtype=np.float32))
    changed = opened(root).fingerprint()
    (root / "b/1.npy").rename(root / "b/2.npy")
    assert len({before, changed, opened(root).fingerprint()}) == 3


# --- Types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", ">f4", "float16", "int16", "uint8"])
def test_numbers_of_every_type_become_float32(tmp_path: Path, dtype: str) -> None:
    values = np.arange(12).reshape(3, 4)
    for name, array in {"rows": values, "columns": np.asfortranarray(values)}.items():
        np.save(tmp_path / f"{name}.npy", array.astype(dtype))
    found = opened(tmp_path, labels="none")
    for index in (0, 1):
        series = found.read(index)
        assert series.dtype == np.float32
        np.testing.assert_array_equal(series, values)


def test_what_is_read_can_be_kept_and_written_to(tmp_path: Path) -> None:
    found = opened(write(tmp_path, "1.npy"), labels="none")
    series = found.read(0)
    series += 1
    assert found.read(0)[0, 0] == 0.0


def test_only_the_header_of_a_large_file_is_read(tmp_path: Path) -> None:
    """200 MB, as the first of a folder and as one of another shape."""
    np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (1, 50_000_000))
    np.save(tmp_path / "z.npy", np.zeros((1, 8), np.float32))
    code = (
        "import resource, sys; from sslkit_series.npy import *; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "assert series_shape(sys.argv[1]) == (1, 50_000_000)\n"
        "try: read_series(sys.argv[1], (1, 8))\n"
        "except BadSeriesError as error: assert 'has shape (1, 50000000)' in str(error)\n"
        "else: raise SystemExit(3)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 20_000  # KiB


def test_a_file_that_is_cut_off_meanwhile_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    """A mapped one would end the process with SIGBUS."""
    path = write(tmp_path, "a.npy", shape=(2, 4096)) / "a.npy"
    found = read_series(str(path))
    os.truncate(path, 256)
    assert float(found.sum()) == 0.0
    with pytest.raises(BadSeriesError, match="ends before its last value"):
        read_series(str(path))


def test_values_that_float32_cannot_tell_apart_are_unreadable(tmp_path: Path) -> None:
    wave = np.sin(np.arange(64) / 5)
    folder = write(tmp_path, "0.npy", shape=(1, 64))
    np.save(folder / "1.npy", 1.7e9 + wave)  # seconds since 1970
    np.save(folder / "2.npy", (1_700_000_000_000 + 1000 * wave).astype(np.int64))
    np.save(folder / "3.npy", 1.7e9 + 1e6 * wave)
    np.save(folder / "4.npy", np.full(64, 16_777_217))  # constant: nothing to tell apart
    found = opened(folder, labels="none")
    for index, around in ((1, "1.7e+09"), (2, "1.7e+12")):
        with pytest.raises(UnreadableImageError, match=f"values around {re.escape(around)} that"):
            found.read(index)
    assert np.abs(found.read(3)[0] - (1.7e9 + 1e6 * wave)).max() <= 64
    found.read(4)


# --- Damaged and hostile files -------------------------------------------------------------------


def npy(header: bytes, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + body


def described(descr: str, shape: str) -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()


HOSTILE = {
    "empty": (b"", "is no .npy file"),
    "text": (b"a,b\n1,2\n", "is no .npy file"),
    "pickle": (b"\x80\x04cos\nsystem\n", "is no .npy file"),
    "zip": (b"PK\x03\x04" + bytes(64), "is no .npy file"),
    "objects": (npy(described("'|O'", "(2,)"), b"\x80\x04."), "holds object"),
    "text values": (npy(described("'<U4'", "(2,)"), bytes(32)), "holds <U4"),
    "complex": (npy(described("'<c8'", "(2,)"), bytes(16)), "holds complex64"),
    "record": (npy(described("[('a', '<f4')]", "(2,)"), bytes(8)), "holds"),
    "code": (npy(b"__import__('os').system('true')\n"), "is no .npy file"),
    "deep": (npy(b"(" * 9000 + b")" * 9000 + b"\n"), "is no .npy file"),
    "cut": (npy(described("'<f4'", "(2, 8)"), bytes(40)), "ends before its last value"),
    "huge": (npy(described("'<f4'", "(1, 10**18)"), bytes(8)), "is no .npy file"),
    "large": (npy(described("'<f4'", f"(1, {10**18})"), bytes(8)), "values; valid are up to"),
    "truth": (npy(described("'<f4'", "(True,)"), bytes(8)), "has shape (True,)"),
    "negative": (npy(described("'<f4'", "(-2, -8)"), bytes(64)), "has shape (-2, -8)"),
    "none": (npy(described("'<f4'", "(2, 0)")), "valid is (length,) or (channels, length)"),
    "scalar": (npy(described("'<f4'", "()"), bytes(4)), "valid is (length,) or"),
    "image": (npy(described("'<f4'", "(2, 2, 2)"), bytes(32)), "valid is (length,) or"),
    "version": (npy(b"", version=b"\x09\x00"), "is of version 9.0"),
    "header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31), "has a header that no array"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_few_words(tmp_path: Path, name: str) -> None:
    content, said = HOSTILE[name]
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(BadSeriesError) as raised:
        read_series(str(path))
    assert said in str(raised.value)
    with pytest.raises(DataError, match=r"data.train: .*x.npy .*; the first file says"):
        opened(tmp_path, labels="none")
    (tmp_path / "a.npy").write_bytes(b"")
    np.save(tmp_path / "a.npy", np.zeros((2, 8), np.float32))
    with pytest.raises(UnreadableImageError):
        opened(tmp_path, labels="none").read(1)


def test_a_series_of_another_shape_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path, "a.npy")
    write(tmp_path, "b.npy", shape=(2, 17))
    with pytest.raises(UnreadableImageError, match=r"has shape \(2, 17\) and the first \(2, 16\)"):
        opened(tmp_path, labels="none").read(1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_unreadable(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "a.npy", np.array([0.0, value]))
    with pytest.raises(UnreadableImageError, match="not finite"):
        opened(tmp_path, labels="none").read(0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_fifos_and_links_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.npy")
    with pytest.raises(BadSeriesError, match="no regular file"):
        read_series(str(tmp_path / "f.npy"))
    (tmp_path / "link.npy").symlink_to(write(tmp_path, "a.npy") / "a.npy")
    with pytest.raises(OSError, match=r"symbolic links|Too many levels"):
        read_series(str(tmp_path / "link.npy"))
    assert len(opened(tmp_path, labels="none")) == 1


def test_the_bound_of_values_holds_all_of_them(tmp_path: Path) -> None:
    shape = f"({MAX_VALUES + 1},)"
    (tmp_path / "a.npy").write_bytes(npy(described("'|u1'", shape), bytes(8)))
    with pytest.raises(BadSeriesError, match="67,108,865 values"):
        read_series(str(tmp_path / "a.npy"))
