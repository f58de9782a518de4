"""Reading packs: the same training as from the source, and files that are no packs."""

import hashlib
import json
import mmap
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sslkit.api import DataSource, DataSourceConfig, ImageReader, Preprocess, Slot
from sslkit.data import pack_format
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import augmented_pairs, evaluation_batches
from sslkit.data.pack import Pack, verify
from sslkit.data.pack_format import (
    Description,
    Settings,
    Split,
    checksum,
    prefix_of,
    read_pack,
    tables_digest,
)
from sslkit.data.pack_writer import write_pack
from sslkit.errors import DataError, RecipeError
from tests.data.loaders import train_loader

AS_IS = Settings(size=None, interpolation="bilinear")


def slot_of(train):
    class Given(DataSource):
        def open(self, split):
            return train if split == "train" else None

    return Slot(Given, "given", DataSourceConfig(max_corrupt_fraction=0.5), "test", "0")


def store_of(reader, **options):
    return CachedSplit(reader, max_corrupt_fraction=0.5, seed=0, num_threads=2, **options)


@pytest.fixture
def readers(tmp_path, list_reader, photo, monkeypatch):
    """readers(channels): the reader of a source, and that of its pack."""
    monkeypatch.setattr(pack_format, "_BLOCK_BYTES", 20_000)

    def make(channels=3, damaged=False):
        images = [photo(i, 40, 48, channels) for i in range(50)]
        if damaged:
            images[11] = "truncated"
        source = list_reader(images, [i % 3 for i in range(50)], (40, 48), channels)
        write_pack(slot_of(source), tmp_path / "x.sslpack", AS_IS, num_threads=2)
        return source, Pack(Pack.Config(file=tmp_path / "x.sslpack")).open("train")

    return make


@pytest.fixture
def pack(readers, tmp_path):
    """The path of a pack of 50 images in blocks of 3."""
    readers()
    return tmp_path / "x.sslpack"


def loader_of(reader, augmentation, num_threads):
    return train_loader(store_of(reader), augmentation, 8, seed=0, num_threads=num_threads)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_training_on_a_pack_equals_training_on_its_source(
    readers, crop_augmentation, channels, damaged
):
    source, packed = readers(channels, damaged)
    augmentation = crop_augmentation((16, 24), brightness=0.2)
    expected = list(loader_of(source, augmentation, 0).epoch(1))
    for num_threads in (0, 3):
        batches = list(loader_of(packed, augmentation, num_threads).epoch(1))
        assert len(batches) == len(expected) == 6
        for a, b in zip(batches, expected, strict=True):
            assert torch.equal(a.indices, b.indices)
            assert torch.equal(a.labels, b.labels)
            assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_evaluation_on_a_pack_equals_evaluation_on_its_source(readers, crop_augmentation):
    stores = [store_of(reader) for reader in readers()]
    how = Preprocess(24, 30, "bilinear", (0.5,) * 3, (0.2,) * 3)
    first, second = (torch.cat(list(evaluation_batches(s, how, 16, "cpu"))) for s in stores)
    assert torch.equal(first, second)
    pairs = [augmented_pairs(s, crop_augmentation(), 12, 0, "cpu") for s in stores]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_the_store_uses_the_file_itself(readers, recwarn):
    _, packed = readers()
    store = store_of(packed, resident_bytes=0)
    assert store.place == "memory-mapped"
    assert store.resident.data_ptr() == packed.samples.ctypes.data
    assert isinstance(packed.samples, np.memmap)
    assert not packed.samples.flags.writeable
    assert store.resident.shape == (50, 3, 40, 48)
    assert torch.equal(store.read(7).permute(1, 2, 0), torch.tensor(packed.read(7)))
    assert not recwarn.list
    assert store.report()["num_unreadable"] == 0


def test_an_array_of_another_shape_than_promised_is_refused(photo):
    class Wrong(ImageReader):
        channels, image_size = 3, (40, 48)
        samples = np.zeros((4, 40, 48, 3), np.uint8)

        def __len__(self):
            return 4

        def read(self, index):
            return self.samples[index]

        def fingerprint(self):
            return ""

    with pytest.raises(DataError, match=r"array \(4, 40, 48, 3\) uint8 .* 4 of 3 x 40 x 48 uint8"):
        store_of(Wrong())


def test_the_fingerprint_follows_pixels_and_labels(tmp_path, list_reader, photo):
    def fingerprint(name, images, labels=None):
        write_pack(slot_of(list_reader(images, labels, (40, 48))), tmp_path / name, AS_IS,
                   num_threads=1)  # fmt: skip
        return Pack(Pack.Config(file=tmp_path / name)).open("train").fingerprint()

    images = [photo(i) for i in range(5)]
    first = fingerprint("a", images, [0, 1, 0, 1, 1])
    assert fingerprint("b", [image.copy() for image in images], [0, 1, 0, 1, 1]) == first
    assert fingerprint("c", images, [0, 1, 0, 1, 0]) != first
    assert fingerprint("d", images) != first
    images[4] = images[4].copy()
    images[4][39, 47, 2] ^= 1
    assert fingerprint("e", images, [0, 1, 0, 1, 1]) != first


def test_images_without_a_label_are_packed(tmp_path, list_reader, photo):
    labels = [0, -1, 1, -1, 1]
    reader = list_reader([photo(i) for i in range(5)], labels, (40, 48))
    write_pack(slot_of(reader), tmp_path / "p", AS_IS, num_threads=1)
    packed = Pack(Pack.Config(file=tmp_path / "p")).open("train")
    assert packed.labels.tolist() == labels
    verify(tmp_path / "p", num_threads=1)


def test_verify_finds_a_flipped_byte(pack):
    seen = []
    verify(pack, num_threads=2, on_progress=lambda *state: seen.append(state))
    assert (seen[0], seen[-1]) == (("train", 0, 50), ("train", 50, 50))
    split = read_pack(pack).description.train
    data = bytearray(pack.read_bytes())
    data[split.pixels + 20 * split.image_bytes + 5] ^= 1
    pack.write_bytes(data)
    read_pack(pack)  # pixels are not looked at on opening
    with pytest.raises(DataError, match=r"1 of 17 blocks .* \(images train 18 to 20\)") as caught:
        verify(pack, num_threads=2)
    assert "\n" not in str(caught.value)


def rewritten(pack, change):
    """The pack with another description, whose digest is right."""
    data = pack.read_bytes()
    place, length = struct.unpack("<Q", data[16:24])[0], struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[place : place + length])
    changed = change(tree)
    text = changed if isinstance(changed, bytes) else json.dumps(tree).encode()
    pack.write_bytes(prefix_of(text, place) + data[64:place] + text)


def set_in(*path):
    *keys, last, value = path

    def change(tree):
        for key in keys:
            tree = tree[key]
        tree[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_in("train", "num_images", 10**12), "the pixels of train take"),
        (set_in("train", "num_images", -1), "train.num_images: Input should be greater than 0"),
        (set_in("train", "height", 2**62), "the pixels of train take"),
        (set_in("train", "height", "40"), "train.height: Input should be a valid integer"),
        (set_in("train", "pixels", 0), "the pixels of train take"),
        (set_in("train", "pixels", 4097), "the pixels of train take"),
        (set_in("train", "labels", 2**63), "the labels of train take"),
        (set_in("train", "class_names", ["a"]), "labels run from 0 to 2; valid is -1 to 0"),
        (set_in("train", "block_images", 1), "labels or checksums are damaged"),
        (set_in("train", "labels", None), "labels or checksums are damaged"),
        (set_in("train", "surprise", 1), "train.surprise: Extra inputs are not permitted"),
        (set_in("train", None), "train: Input should be"),
        (lambda tree: b"[" * 100_000, "its description is not valid"),
        (lambda tree: b"\xff\xfe", "its description is not valid"),
        (lambda tree: b'{"train": ' + b"9" * 10_000, "its description is not valid"),
        (lambda tree: b"", "its description is not valid"),
    ],
)
def test_lies_in_the_description_are_refused(pack, change, expected):
    rewritten(pack, change)
    with pytest.raises(DataError) as caught:
        read_pack(pack)
    text = str(caught.value)
    assert text.startswith(f"{pack}: ")
    assert expected in text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused(pack, value):
    """What was packed is recorded with every run."""

    def change(tree):
        return json.dumps({**tree, "source": {"x": "@"}}).replace('"@"', value).encode()

    rewritten(pack, change)
    with pytest.raises(DataError, match=r"its description is not valid \(source: holds what JSON"):
        read_pack(pack)


def patched(at, value):
    return lambda data: data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: b"", "is not a pack"),
        (lambda data: data[:50], "is not a pack"),
        (lambda data: b"\x89PNG" + data[4:], "is not a pack"),
        (lambda data: bytes(64) + data[64:], "is not a pack"),
        (lambda data: data[:-1], "should have"),
        (lambda data: data[:5000], "should have"),
        (lambda data: data + b"\0", "should have"),
        (patched(8, struct.pack("<I", 9)), "is a pack of format 9"),
        (patched(12, struct.pack("<I", 2**32 - 1)), "is damaged"),
        (patched(16, struct.pack("<Q", 2**64 - 1)), "is damaged"),
        (patched(32, b"\0"), "its description is damaged"),
    ],
)
def test_foreign_and_damaged_files_are_refused_in_one_line(pack, change, expected):
    pack.write_bytes(change(pack.read_bytes()))
    for call in (read_pack, lambda path: Pack(Pack.Config(file=path)).open("train")):
        with pytest.raises(DataError) as caught:
            call(pack)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_any_flipped_byte_outside_the_pixels_is_noticed_on_opening(pack):
    data = pack.read_bytes()
    split = read_pack(pack).description.train
    end = split.pixels + split.num_images * split.image_bytes
    generator = np.random.default_rng(0)
    places = [*range(64), *generator.integers(split.labels, len(data), 100)]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(generator.integers(8))
        pack.write_bytes(damaged)
        if end <= place < split.labels:
            continue  # padding
        try:
            opened = read_pack(pack)
        except DataError:
            continue
        padding = data[place] == 0 and place > split.checksums + 16 * split.num_blocks
        assert padding, place
        assert opened.description.train == split


def test_a_flipped_pixel_is_noticed_before_a_run(pack):
    data = bytearray(pack.read_bytes())
    split = read_pack(pack).description.train
    whole = Pack(Pack.Config(file=pack)).open("train")
    assert whole.fingerprint() == read_pack(pack).fingerprint(split)
    data[split.pixels + split.image_bytes] ^= 1
    pack.write_bytes(data)
    with pytest.raises(DataError, match=r"1 of \d+ blocks do not match .* \(images train \d+ to"):
        Pack(Pack.Config(file=pack)).open("train").fingerprint()


@pytest.mark.skipif(sys.platform != "linux", reason="files with holes, and /proc")
def test_a_pack_larger_than_the_memory_is_used_in_place(tmp_path):
    count, shape = 2_000_000, (3, 256, 256)  # 393 GB, all of it a hole
    checksums = 4096 + count * 3 * 256 * 256
    split = Split(
        num_images=count, channels=3, height=256, width=256, block_images=count, pixels=4096,
        labels=None, checksums=checksums, class_names=None, source_fingerprint="",
        tables_digest=tables_digest([checksum(bytes(16))]),
    )  # fmt: skip
    text = Description(sslkit="", source={}, settings=AS_IS, train=split, test=None)
    encoded, place = text.model_dump_json().encode(), checksums + 4096
    with (tmp_path / "x").open("wb") as file:
        file.write(prefix_of(encoded, place))
        file.seek(place)
        file.write(encoded)
    before = resident_bytes()
    store = store_of(Pack(Pack.Config(file=tmp_path / "x")).open("train"))
    assert tuple(store.resident.shape) == (count, *shape)
    rows = torch.tensor([0, count // 2, count - 1])
    assert int(store.resident.index_select(0, rows).sum()) == 0
    assert resident_bytes() - before < 100 * 2**20


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_huge_description_is_refused_unread(pack, monkeypatch):
    size = pack_format.MAX_DESCRIPTION_BYTES + 1
    start = pack.read_bytes()[:8192]
    with pack.open("wb") as file:  # a hole: nothing is written
        file.write(struct.pack("<8sIIQQ32s", b"sslpack\n", 1, size, 8192, 8192 + size, bytes(32)))
        file.write(start[64:])
        file.truncate(8192 + size)
    with pytest.raises(DataError, match=r"a description of 16,777,217 bytes"):
        read_pack(pack)


def test_paths_that_are_no_file(tmp_path):
    source = Pack(Pack.Config(file=tmp_path / "nothing.sslpack"))
    with pytest.raises(RecipeError, match=r"nothing.sslpack: does not exist; expected a pack"):
        source.open("train")
    with pytest.raises(RecipeError, match=r"is no file; expected a pack"):
        Pack(Pack.Config(file=tmp_path)).open("train")


def test_the_layout_is_what_the_documentation_says(pack):
    """Reads a pack with nothing but numpy and json."""
    data = pack.read_bytes()
    magic, version, length, place, size, digest = struct.unpack("<8sIIQQ32s", data[:64])
    assert (magic, version, size) == (b"sslpack\n", 1, len(data))
    text = data[place : place + length]
    assert hashlib.blake2b(text, digest_size=32).digest() == digest
    train = json.loads(text)["train"]
    shape = [train[key] for key in ("num_images", "channels", "height", "width")]
    pixels = np.frombuffer(data, np.uint8, np.prod(shape), train["pixels"]).reshape(shape)
    labels = np.frombuffer(data, "<i8", shape[0], train["labels"])
    assert train["pixels"] == 4096
    assert np.array_equal(pixels, read_pack(pack).pixels(read_pack(pack).description.train))
    assert labels.tolist() == [i % 3 for i in range(50)]
    block = pixels[: train["block_images"]].tobytes()
    stored = data[train["checksums"] : train["checksums"] + 16]
    assert hashlib.blake2b(block, digest_size=16).digest() == stored
    assert re.fullmatch(r"[0-9a-f]{32}", train["tables_digest"])
