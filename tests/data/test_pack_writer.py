"""Writing packs: the stored pixels, unreadable images, and processes that end too early."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from sslkit.api import DataSource, DataSourceConfig, ImageReader, Slot
from sslkit.data import pack_format, pack_journal
from sslkit.data.pack import Pack
from sslkit.data.pack_format import Settings
from sslkit.data.pack_writer import write_pack
from sslkit.errors import DataError, RecipeError
from sslkit.recipe import load_data_block

AS_IS = Settings(size=None, interpolation="bilinear")
SYNTHETIC = "{name: synthetic, num_train: 90, num_test: 33, size: 16}"


def slot_of(train, test=None):
    """The slot of a source that has these readers."""

    class Given(DataSource):
        def __init__(self, config):
            super().__init__(config)

        def open(self, split):
            return train if split == "train" else test

    return Slot(Given, "given", DataSourceConfig(max_corrupt_fraction=0.5), "test", "0")


def opened(path, split="train"):
    return Pack(Pack.Config(file=path)).open(split)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few small images, each noted on the disk at once."""
    monkeypatch.setattr(pack_format, "_BLOCK_BYTES", 10_000)
    monkeypatch.setattr(pack_journal, "_FLUSH_EVERY_S", 0.0)


@pytest.mark.parametrize(
    "source",
    [
        SYNTHETIC,
        "{name: synthetic, num_train: 20, num_test: 0, size: 16, channels: 1}",
        "{name: digits, size: 8}",
    ],
)
def test_a_pack_holds_what_the_source_gives(source, tmp_path):
    data = load_data_block(source)
    write_pack(data, tmp_path / "x.sslpack", AS_IS, num_threads=2)
    for split in ("train", "test"):
        reader, packed = data.build().open(split), opened(tmp_path / "x.sslpack", split)
        if reader is None:
            assert packed is None
            continue
        assert len(packed) == len(reader)
        assert (packed.channels, packed.image_size) == (reader.channels, reader.image_size)
        assert tuple(packed.class_names) == tuple(reader.class_names)
        assert np.array_equal(packed.labels, reader.labels)
        assert all(np.array_equal(packed.read(i), reader.read(i)) for i in range(len(reader)))
        assert packed.details["source_fingerprint"] == reader.fingerprint()
        assert packed.details["packed_from"]["name"] == data.name
    assert [path.name for path in tmp_path.iterdir()] == ["x.sslpack"]


def test_files_and_parquet_can_be_packed(tmp_path, encoded):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "photos").mkdir()
    files = [encoded(i, ["PNG", "JPEG"][i % 2]) for i in range(6)]
    for number, data in enumerate(files):
        (tmp_path / "photos" / f"{number}.{['png', 'jpg'][number % 2]}").write_bytes(data)
    table = pa.table({"image": [{"bytes": data} for data in files], "label": [0, 1, 2, 0, 1, 2]})
    parquet.write_table(table, tmp_path / "photos.parquet")
    for name in ("image_folder", "parquet"):
        train = tmp_path / ("photos" if name == "image_folder" else "photos.parquet")
        data = load_data_block(f"{{name: {name}, train: {train}}}")
        write_pack(data, tmp_path / f"{name}.sslpack", AS_IS, num_threads=1)
        reader, packed = data.build().open("train"), opened(tmp_path / f"{name}.sslpack")
        assert all(np.array_equal(packed.read(i), reader.read(i)) for i in range(6))
        assert (packed.labels is None) == (name == "image_folder")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_size_means_torchvisions_resize_and_centre_crop(
    tmp_path, list_reader, photo, interpolation
):
    images = [photo(0, 60, 80), photo(1, 81, 50), photo(2, 20, 20), photo(3, 7, 90)]
    settings = Settings(size=24, interpolation=interpolation)
    write_pack(slot_of(list_reader(images)), tmp_path / "x", settings, num_threads=2)
    packed = opened(tmp_path / "x")
    assert packed.image_size == (24, 24)
    assert packed.labels is None
    for image, stored in zip(images, packed.samples, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1) / 255.0
        resized = tv.resize(tensor, 24, InterpolationMode(interpolation), antialias=True)
        expected = tv.center_crop(resized.clamp(0, 1), [24, 24])
        assert float((torch.tensor(stored) / 255.0 - expected).abs().max()) <= 1.005 / 255


def test_a_line_of_pixels_does_not_become_gigabytes(tmp_path, list_reader):
    lines = [np.zeros((1, 60_000, 3), np.uint8), np.full((60_000, 2, 3), 9, np.uint8)]
    settings = Settings(size=64, interpolation="bicubic")
    write_pack(slot_of(list_reader(lines)), tmp_path / "x", settings, num_threads=1)
    pixels = opened(tmp_path / "x").samples
    assert pixels[0].max() == 0
    assert (pixels[1] == 9).all()


def test_unreadable_images_are_replaced_once_and_listed(tmp_path, list_reader, photo, small_blocks):
    images = [photo(i, 20, 20) for i in range(12)]
    images[3] = images[7] = "truncated"
    reader = list_reader(images, [i % 4 for i in range(12)], (20, 20))
    pack = write_pack(slot_of(reader), tmp_path / "x", AS_IS, num_threads=3)
    entries = pack.description.train.unreadable
    assert [(e.index, e.image, e.reason) for e in entries] == [
        (3, "picture-3", "truncated"),
        (7, "picture-7", "truncated"),
    ]
    packed = opened(tmp_path / "x")
    for entry in entries:
        assert np.array_equal(packed.read(entry.index), images[entry.replaced_by])
        assert packed.labels[entry.index] == entry.replaced_by % 4
    assert packed.details["replaced_images"] == 2
    strict = slot_of(reader)
    strict.config = DataSourceConfig(max_corrupt_fraction=0.1)
    with pytest.raises(DataError, match=r"data.max_corrupt_fraction 0.1; first: picture-3"):
        write_pack(strict, tmp_path / "y", AS_IS, num_threads=1)


class Stopper(ImageReader):
    """A reader that fails for good at the n-th read, as if the process ended there."""

    def __init__(self, reader, reads):
        self.reader, self.reads = reader, reads
        self.channels, self.image_size = reader.channels, reader.image_size
        self.labels, self.class_names = reader.labels, reader.class_names

    def describe(self, index):
        return self.reader.describe(index)

    def fingerprint(self):
        return self.reader.fingerprint()

    def __len__(self):
        return len(self.reader)

    def read(self, index):
        self.reads -= 1
        if self.reads < 0:
            raise KeyboardInterrupt
        return self.reader.read(index)


@pytest.mark.parametrize("first_threads", [0, 2])
def test_a_stopped_pack_goes_on_and_ends_with_the_same_bytes(
    tmp_path, list_reader, photo, small_blocks, first_threads
):
    def images(start, count):
        found = [photo(start + i, 20, 24) for i in range(count)]
        found[2] = "truncated"
        return found

    def readers():
        return (
            list_reader(images(0, 50), [i % 5 for i in range(50)], (20, 24)),
            list_reader(images(60, 15), [i % 5 for i in range(15)], (20, 24)),
        )

    write_pack(slot_of(*readers()), tmp_path / "whole", AS_IS, num_threads=0)
    whole = (tmp_path / "whole").read_bytes()
    out = tmp_path / "stopped"
    starts = []
    for reads in (3, 17, 12, 25, 9):
        train, test = readers()
        with pytest.raises(KeyboardInterrupt):
            write_pack(
                slot_of(Stopper(train, reads), Stopper(test, 5)),
                out,
                AS_IS,
                num_threads=first_threads,
                on_progress=lambda split, done, total: starts.append((split, done)),
            )
        assert not out.exists()
        with (tmp_path / "stopped.journal").open("a") as journal:
            journal.write('{"split": "train", "blo')  # as a kill leaves it
    write_pack(slot_of(*readers()), out, AS_IS, num_threads=2)
    assert out.read_bytes() == whole
    assert max(starts)[1] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "stopped"}


PROGRAM = """
import json
import sys
from pathlib import Path
from sslkit.data import pack_format, pack_journal
from sslkit.data.pack_format import Settings
from sslkit.data.pack_writer import write_pack
from sslkit.api import resolve_component
from sslkit.host.plugins import load_plugins
pack_format._BLOCK_BYTES = 20_000
pack_journal._FLUSH_EVERY_S = 0.0
write_pack(
    resolve_component(load_plugins().registry, "dataset", json.loads(sys.argv[1])),
    Path(sys.argv[2]), Settings(size=None, interpolation="bilinear"),
    num_threads=2,
)
"""


@pytest.mark.slow  # 6 seconds
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_is_continued_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_format, "_BLOCK_BYTES", 20_000)
    block = {"name": "synthetic", "num_train": 900, "num_test": 50, "size": 16}
    source = json.dumps(block)
    out = tmp_path / "killed.sslpack"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, source, str(out)])
    journal = tmp_path / "killed.sslpack.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    seen = []
    write_pack(
        load_data_block(source),
        out,
        AS_IS,
        num_threads=1,
        on_progress=lambda split, done, total: seen.append(done),
    )
    assert 0 < seen[0] < 900
    write_pack(load_data_block(source), tmp_path / "whole", AS_IS, num_threads=0)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_another_pack_under_the_same_name_is_refused_and_told_why(
    tmp_path, list_reader, photo, small_blocks
):
    images = [photo(i, 20, 20) for i in range(40)]
    out = tmp_path / "x"
    reader = Stopper(list_reader(images), 20)
    settings = Settings(size=16, interpolation="bilinear")
    with pytest.raises(KeyboardInterrupt):
        write_pack(slot_of(reader), out, settings, num_threads=0)
    other = Settings(size=18, interpolation="bilinear")
    with pytest.raises(RecipeError, match=r"x.partial: was begun with settings.size 16, now 18"):
        write_pack(slot_of(list_reader(images)), out, other, num_threads=0)
    with pytest.raises(RecipeError, match=r"train.num_images 40, now 39"):
        write_pack(slot_of(list_reader(images[:39])), out, settings, num_threads=0)
    (tmp_path / "x.partial").unlink()  # a journal alone says nothing
    write_pack(slot_of(list_reader(images)), out, other, num_threads=0)
    with pytest.raises(RecipeError, match=r"--out: .*x exists already"):
        write_pack(slot_of(list_reader(images)), out, other, num_threads=0)


def test_a_second_writer_is_refused(tmp_path, list_reader, photo):
    inner = []

    class Nested(Stopper):
        def read(self, index):
            if not inner:
                inner.append(True)
                with pytest.raises(RecipeError, match="another process is writing"):
                    write_pack(slot_of(self.reader), tmp_path / "x", AS_IS, num_threads=0)
            return self.reader.read(index)

    reader = list_reader([photo(i, 20, 20) for i in range(4)], image_size=(20, 20))
    write_pack(slot_of(Nested(reader, 0)), tmp_path / "x", AS_IS, num_threads=0)
    assert inner


def test_images_of_several_sizes_need_a_size(tmp_path, list_reader, photo):
    mixed = [photo(0, 20, 20), photo(1, 20, 21)]
    with pytest.raises(RecipeError, match=r"--size: the train images differ in size"):
        write_pack(slot_of(list_reader(mixed)), tmp_path / "x", AS_IS, num_threads=0)
    promised = list_reader(mixed, image_size=(20, 20))
    with pytest.raises(RecipeError, match=r"picture-1 has 21 x 20 pixels, others 20 x 20"):
        write_pack(slot_of(promised), tmp_path / "x", AS_IS, num_threads=0)


def test_a_full_disk_is_found_before_and_reported_during(tmp_path, monkeypatch):
    data = load_data_block(SYNTHETIC)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(RecipeError, match=r"--out: .* needs 1[0-9.]+ MB and .* has 0.0 MB free"):
        write_pack(data, tmp_path / "x", AS_IS, num_threads=0)
    monkeypatch.undo()

    def full(self, place, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_journal.Journal, "write", full)
    with pytest.raises(DataError, match=r"x: cannot be written \(No space left on device\)") as e:
        write_pack(data, tmp_path / "x", AS_IS, num_threads=2)
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    write_pack(data, tmp_path / "x", AS_IS, num_threads=2)
    assert opened(tmp_path / "x") is not None


def test_the_data_of_a_recipe_with_overrides_or_a_block(tmp_path, tiny):
    assert load_data_block(str(tiny), ["data.num_train=77"]).config.num_train == 77
    assert load_data_block("quickstart").name == "digits"
    assert load_data_block("{name: digits, size: 8}", ["data.size=16"]).config.size == 16
    with pytest.raises(RecipeError, match=r"folder; expected .*\{name: image_folder, train: .*"):
        load_data_block(str(tmp_path))
    with pytest.raises(RecipeError, match="sise"):
        load_data_block("{name: digits, sise: 8}")


def test_packing_a_pack_shrinks_it(tmp_path, photo):
    for number in range(5):
        Image.fromarray(photo(number, 40, 40)).save(tmp_path / f"{number}.png")
    data = load_data_block(f"{{name: image_folder, train: {tmp_path}}}")
    write_pack(data, tmp_path / "large", AS_IS, num_threads=1)
    half = Settings(size=20, interpolation="bilinear")
    write_pack(load_data_block(f"{{name: pack, file: {tmp_path}/large}}"), tmp_path / "a", half,
               num_threads=1)  # fmt: skip
    write_pack(data, tmp_path / "b", half, num_threads=1)
    assert np.array_equal(opened(tmp_path / "a").samples, opened(tmp_path / "b").samples)
    assert json.loads(json.dumps(opened(tmp_path / "a").details))["packed_from"]["name"] == "pack"


def test_pixels_that_changed_in_an_unfinished_pack_are_made_again(small_blocks, tmp_path):
    data = load_data_block(SYNTHETIC)
    write_pack(data, tmp_path / "whole", AS_IS, num_threads=0)

    def stop(split, done, total):
        if split == "test":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(data, tmp_path / "x", AS_IS, num_threads=0, on_progress=stop)
    partial = tmp_path / "x.partial"
    changed = bytearray(partial.read_bytes())
    changed[pack_format.ALIGNMENT + 30_000] ^= 1
    partial.write_bytes(changed)
    begun = []
    write_pack(
        data, tmp_path / "x", AS_IS, num_threads=0, on_progress=lambda *at: begun.append(at[1])
    )
    assert 0 < begun[0] < 90  # the blocks before the change are kept
    assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()


def test_no_byte_between_the_sections_is_left_as_it_was(small_blocks, tmp_path, monkeypatch):
    data = load_data_block(SYNTHETIC)
    write_pack(data, tmp_path / "whole", AS_IS, num_threads=0)
    whole = (tmp_path / "whole").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(pack_journal.Journal, "finish", lambda self, out: self.close())
        with pytest.raises(RecipeError, match="does not exist"):
            write_pack(data, tmp_path / "x", AS_IS, num_threads=0)
    written = bytearray((tmp_path / "x.partial").read_bytes())
    zeros = [place for place in range(64, len(whole)) if not whole[place] and not written[place]]
    description = pack_format.read_pack(tmp_path / "whole").description
    sections = [s for split in description.splits().values() for s in split.sections()]
    gaps = [
        place for place in zeros if not any(at <= place < at + size for _, at, size, _ in sections)
    ]
    assert len(gaps) > 1000
    for place in gaps:
        written[place] = 7
    (tmp_path / "x.partial").write_bytes(written + b"more")
    write_pack(data, tmp_path / "x", AS_IS, num_threads=0)
    assert (tmp_path / "x").read_bytes() == whole


def test_a_journal_that_is_no_file_is_refused(small_blocks, tmp_path, list_reader, photo):
    data = slot_of(list_reader([photo(i, 12, 12) for i in range(8)], None, (12, 12)))
    (tmp_path / "x.partial").write_bytes(b"")
    (tmp_path / "x.journal").symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match=r"x\.journal: is or lies behind a link.*; delete it"):
        write_pack(data, tmp_path / "x", AS_IS, num_threads=0)


def test_no_changed_byte_of_a_journal_changes_the_pack(small_blocks, tmp_path, list_reader, photo):
    images = [photo(i, 12, 12) for i in range(60)]
    images[3] = images[40] = "damaged"
    data = slot_of(list_reader(images, [i % 5 for i in range(60)], (12, 12)))
    write_pack(data, tmp_path / "whole", AS_IS, num_threads=0)

    def stop(split, done, total):
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(data, tmp_path / "x", AS_IS, num_threads=0, on_progress=stop)
    kept = {name: (tmp_path / name).read_bytes() for name in ("x.partial", "x.journal")}
    generator = np.random.default_rng(0)
    for _ in range(25):
        for name, content in kept.items():
            (tmp_path / name).write_bytes(content)
        changed = bytearray(kept["x.journal"])
        changed[generator.integers(len(changed))] ^= 1 << generator.integers(8)
        (tmp_path / "x.journal").write_bytes(changed)
        write_pack(data, tmp_path / "x", AS_IS, num_threads=0)
        assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()
        (tmp_path / "x").unlink()


def test_a_test_split_is_divided_off_into_the_pack(tmp_path):
    source = f"{{name: image_folder, train: {tmp_path / 'all'}, test_fraction: 0.25}}"
    for i in range(24):
        path = tmp_path / "all" / f"c{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    write_pack(load_data_block(source), tmp_path / "x", AS_IS, num_threads=2)
    assert np.bincount(opened(tmp_path / "x").labels).tolist() == [6, 6, 6]
    assert np.bincount(opened(tmp_path / "x", "test").labels).tolist() == [2, 2, 2]


def test_a_pack_says_what_packing_found(tmp_path, list_reader, photo):
    images = [photo(i, 8, 8) for i in range(40)]
    train = list_reader(images[:30], [0, 1] * 15, (8, 8))
    test = list_reader([*images[:3], *images[30:]], [0] * 12 + [1], (8, 8))
    train.fingerprint = lambda: "another"
    write_pack(slot_of(train, test), tmp_path / "x", AS_IS, num_threads=0)
    (note,) = opened(tmp_path / "x").notes
    assert note.startswith("3 of 13 test images are also training images (picture-0 is picture-0)")
    with pytest.raises(RecipeError, match=r"data.test: the 30 test images are the training image"):
        write_pack(slot_of(train, train), tmp_path / "y", AS_IS, num_threads=0)
