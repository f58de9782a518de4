"""Data sources with one fault each, as people make them, and a sound one that they differ from."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random as python_random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.api import (
    Boxes,
    DataSource,
    DataSourceConfig,
    HasBoxes,
    HasEncoded,
    HasMasks,
    ImageReader,
    ImageStream,
    SampleSpec,
    SplitReader,
)
from sslkit.errors import DataError

SIDE = 12
BYTES = SIDE * SIDE * 3
CLASSES = ("even", "odd", "prime")


def write(folder: Path, count: int = 40) -> Path:
    """Raw images, one after the other in one file for each split."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        noise.integers(0, 256, count * BYTES, dtype=np.uint8).tofile(folder / f"{split}.raw")
    return folder


class Sound(DataSource):
    """Images that lie one after the other in a file: nothing is wrong with it."""

    reader: ClassVar[type[SoundReader]]

    class Config(DataSourceConfig):
        folder: Path
        """Where train.raw and test.raw lie."""

    def open(self, split: Literal["train", "test"]) -> Any:
        path = self.config.folder / f"{split}.raw"
        if not path.is_file():
            raise DataError(f"data.folder: {path} is no file; expected raw images")
        return self.reader(path, split)


class SoundReader(HasEncoded, ImageReader):
    """Reads each image from its place."""

    channels = 3
    image_size = (SIDE, SIDE)
    class_names = CLASSES

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.count = path.stat().st_size // BYTES
        self.labels = np.arange(self.count, dtype=np.int64) % 3
        self.file = path.open("rb")

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.image(os.pread(self.file.fileno(), BYTES, index * BYTES))

    def image(self, data: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(data, dtype=np.uint8).reshape(SIDE, SIDE, 3).copy()

    def encoded(self, index: int) -> bytes:
        return os.pread(self.file.fileno(), BYTES, index * BYTES)

    def encoded_sizes(self) -> NDArray[np.int64] | None:
        return np.full(self.count, BYTES, dtype=np.int64)

    def fingerprint(self) -> str:
        return hashlib.blake2b(self.path.read_bytes(), digest_size=8).hexdigest()


Sound.reader = SoundReader


def source_of(reader: type[SoundReader], base: type[Sound] = Sound) -> type[Sound]:
    """A source whose splits are read by this reader."""
    return type(reader.__name__, (base,), {"reader": reader, "__doc__": reader.__doc__})


# --- Reading --------------------------------------------------------------------------------------


class SharedPosition(SoundReader):
    """Goes to the place of an image in one file, and reads there."""

    def read(self, index: int) -> NDArray[np.uint8]:
        self.file.seek(index * BYTES)
        return self.image(self.file.read(BYTES))


class SharedArchive(SoundReader):
    """Reads from one open tar, which goes to the place and reads there in two steps."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as made:
            for index in range(self.count):
                member = tarfile.TarInfo(str(index))
                member.size = BYTES
                made.addfile(member, io.BytesIO(super().encoded(index)))
        packed.seek(0)
        self.tar = tarfile.open(fileobj=packed)  # noqa: SIM115  (kept open)
        self.members = self.tar.getmembers()

    def read(self, index: int) -> NDArray[np.uint8]:
        member = self.tar.extractfile(self.members[index])
        assert member is not None
        return self.image(member.read())


class OneBuffer(SoundReader):
    """Reads every image into the same memory."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.buffer = np.empty((SIDE, SIDE, 3), dtype=np.uint8)

    def read(self, index: int) -> NDArray[np.uint8]:
        self.buffer[...] = super().read(index)
        return self.buffer


class KeepsWhatItGave(SoundReader):
    """Keeps images in a dict, and hands out the kept ones."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.kept: dict[int, NDArray[np.uint8]] = {}

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.kept.setdefault(index, super().read(index))


class Forward(SoundReader):
    """Reads on from where it is."""

    def read(self, index: int) -> NDArray[np.uint8]:
        data = self.file.read(BYTES)
        if len(data) < BYTES:
            self.file.seek(0)
            data = self.file.read(BYTES)
        return self.image(data)


class Augments(SoundReader):
    """Mirrors images at random."""

    def read(self, index: int) -> NDArray[np.uint8]:
        image = super().read(index)
        return image[:, ::-1] if python_random.random() < 0.5 else image


class Floats(SoundReader):
    """Gives values from 0 to 1."""

    def read(self, index: int) -> Any:
        return (super().read(index) / 255.0).astype(np.float32)


class ChannelsFirst(SoundReader):
    """Gives (C, H, W)."""

    def read(self, index: int) -> NDArray[np.uint8]:
        return super().read(index).transpose(2, 0, 1)


class OtherArray(SoundReader):
    """Has an array beside what it reads, in another order."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        read = [super(OtherArray, self).read(index) for index in range(self.count)]
        self.samples = np.stack(read)[::-1].transpose(0, 3, 1, 2)


# --- What is opened -------------------------------------------------------------------------------


class FewerLabels(SoundReader):
    """Has no label for the last image."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.labels = self.labels[:-1]


class LabelsFromOne(SoundReader):
    """Counts classes from 1."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.labels = self.labels + 1


class OtherClassesInTest(SoundReader):
    """Names the classes of the test split in another order."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.class_names = CLASSES if split == "train" else CLASSES[::-1]


class OneKey(SoundReader):
    """Names samples by their class."""

    def key(self, index: int) -> str:
        return CLASSES[self.labels[index]]


class ReadsAll(SoundReader):
    """Reads every image while it is opened."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.means = [self.read(index).mean() for index in range(self.count)]


class ConstantFingerprint(SoundReader):
    """Has one fingerprint for all data."""

    def fingerprint(self) -> str:
        return f"raw-{self.split}"


class FingerprintOfSizes(SoundReader):
    """Has a fingerprint that is blind to content."""

    def fingerprint(self) -> str:
        return hashlib.blake2b(str(self.path.stat().st_size).encode()).hexdigest()[:16]


class FingerprintOfThePlace(SoundReader):
    """Has a fingerprint of where the data lies and when it was written."""

    def fingerprint(self) -> str:
        text = f"{super().fingerprint()} {self.path} {self.path.stat().st_mtime_ns}"
        return hashlib.blake2b(text.encode()).hexdigest()[:16]


class FingerprintOfTheOpening(SoundReader):
    """Has another fingerprint each time it is opened."""

    opened: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.number = next(self.opened)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}-{self.number}"


class HashReader(SoundReader):
    """Has a fingerprint by Python's hash, which differs between processes."""

    def fingerprint(self) -> str:
        return f"{hash(self.path.read_bytes()):x}"


class WrongLengths(SoundReader):
    """States the bytes of decoded images."""

    def encoded_sizes(self) -> NDArray[np.int64] | None:
        return np.full(self.count, BYTES + 1, dtype=np.int64)


class FingerprintOfTheProcess(Sound):
    """Opens what has another fingerprint in another process."""

    reader = HashReader


class TestIsTrain(Sound):
    """Tests on the images that it trains on."""

    __test__ = False
    reader = SoundReader

    def open(self, split: Literal["train", "test"]) -> Any:
        return super().open("train")


class KeepsAll(Sound):
    """Says that it divides itself, and keeps half for testing, whatever is asked for."""

    reader = SoundReader
    divides_itself = True


class Empty(Sound):
    """Has no training images."""

    def open(self, split: Literal["train", "test"]) -> Any:
        reader = super().open(split)
        reader.count, reader.labels = 0, reader.labels[:0]
        return reader


class Shuffled(Sound):
    """Opens its labels and images in another order each time."""

    opened: ClassVar[Iterator[int]] = itertools.count()

    def open(self, split: Literal["train", "test"]) -> Any:
        reader = super().open(split)
        order = np.random.default_rng(next(self.opened)).permutation(reader.count)
        reader.labels = reader.labels[order]
        reader.read = lambda index: SoundReader.read(reader, int(order[index]))
        reader.encoded = lambda index: SoundReader.encoded(reader, int(order[index]))
        return reader


class MissingIsEmpty(Sound):
    """Lets the system say that a file is missing."""

    def open(self, split: Literal["train", "test"]) -> Any:
        return self.reader(self.config.folder / f"{split}.raw", split)


class Trusting(SoundReader):
    """Takes the number of images from the name of the file's folder, whatever the file holds."""

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, split)
        self.count = 40
        self.labels = np.arange(self.count, dtype=np.int64) % 3


# --- Annotations and streams ----------------------------------------------------------------------


class MaskReader(HasMasks, HasBoxes, SoundReader):
    """Has a mask and a box for every image."""

    mask_classes = CLASSES
    box_classes = CLASSES

    def mask(self, index: int) -> NDArray[np.uint8]:
        return (self.read(index)[..., 0] % 3).astype(np.uint8)

    def boxes(self, index: int) -> Boxes:
        none = np.zeros(1, dtype=np.bool_)
        corners = np.array([[1.0, 2.0, 6.0, 9.0]], dtype=np.float32)
        return Boxes(corners, np.array([index % 3]), none, none)


class MaskOfAnotherSize(MaskReader):
    """Has masks of half the size."""

    def mask(self, index: int) -> NDArray[np.uint8]:
        return super().mask(index)[::2, ::2]


class BoxesAsWidths(MaskReader):
    """Gives boxes as left, top, width, height."""

    def boxes(self, index: int) -> Boxes:
        found = super().boxes(index)
        left, top, right, bottom = found.corners[0] + 5.0
        corners = np.array([[left, top, right - left, bottom - top]], dtype=np.float32)
        return Boxes(corners, found.labels, found.difficult, found.crowd)


class Stream(ImageStream):
    """Images one after the other, from front to back."""

    channels = 3
    image_size = (SIDE, SIDE)
    epoch_samples = 40

    def stored(self, position: int) -> Iterator[int]:
        return itertools.count(position)

    def decode(self, stored: int) -> NDArray[np.uint8]:
        noise = np.random.default_rng(stored % 40)
        return noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return "forty"


class StreamSource(DataSource):
    """A stream that goes on: nothing is wrong with it."""

    reader: ClassVar[type[Stream]] = Stream

    def open(self, split: Literal["train", "test"]) -> Any:
        return self.reader() if split == "train" else None


class EvenPlaces(Stream):
    """Begins at every second position alone."""

    def stored(self, position: int) -> Iterator[int]:
        return super().stored(position + position % 2)


class Ends(Stream):
    """Ends with the first epoch."""

    def stored(self, position: int) -> Iterator[int]:
        return iter(range(position, 40))


class NoSeries(SplitReader):
    """Series that are longer than announced."""

    def __len__(self) -> int:
        return 8

    @property
    def sample(self) -> SampleSpec:
        return SampleSpec((1, 16), "float32")

    def read(self, index: int) -> NDArray[Any]:
        return np.full((1, 17), index, dtype=np.float32)

    def fingerprint(self) -> str:
        return "series"


class LongSeries(DataSource):
    """Opens series that are longer than announced."""

    def open(self, split: Literal["train", "test"]) -> Any:
        return NoSeries() if split == "train" else None


class Grey(Sound):
    """Takes a number of channels, and gives images of as many."""

    reader: ClassVar[type[SoundReader]] = SoundReader
    states_channels: ClassVar[bool] = True

    class Config(Sound.Config):
        channels: Literal[1, 3] = 3
        """Grey images or RGB."""

    def open(self, split: Literal["train", "test"]) -> Any:
        reader = super().open(split)
        if self.config.channels == 1:
            reader.image = lambda data: (
                SoundReader.image(reader, data).mean(-1, keepdims=True).astype(np.uint8)
            )
            if self.states_channels:
                reader.channels = 1
        return reader


class GreyUnsaid(Grey):
    """States three channels for images of one."""

    states_channels = False


BROKEN: dict[type[Any], str] = {
    Empty: "opens-its-splits",
    source_of(Floats): "samples-are-as-announced",
    source_of(ChannelsFirst): "samples-are-as-announced",
    source_of(OtherArray): "samples-are-as-announced",
    GreyUnsaid: "samples-are-as-announced",
    LongSeries: "samples-are-as-announced",
    source_of(Augments): "no-global-random-numbers",
    source_of(Forward): "reads-repeat",
    source_of(OneBuffer): "reads-are-independent",
    source_of(KeepsWhatItGave): "reads-are-independent",
    source_of(SharedPosition): "threads-read-the-same",
    source_of(SharedArchive): "threads-read-the-same",
    source_of(MaskOfAnotherSize): "masks-fit-their-images",
    source_of(BoxesAsWidths): "boxes-fit-their-images",
    source_of(WrongLengths): "encoded-bytes-are-as-stated",
    type("EvenPlaces", (StreamSource,), {"reader": EvenPlaces}): (
        "a-stream-goes-on-where-it-is-told"
    ),
    type("Ends", (StreamSource,), {"reader": Ends}): "a-stream-goes-on-where-it-is-told",
    KeepsAll: "follows-test-fraction",
    Shuffled: "opens-the-same-again",
    source_of(ReadsAll): "opening-reads-few-samples",
    source_of(FewerLabels): "labels-fit-the-samples",
    source_of(LabelsFromOne): "labels-fit-the-samples",
    source_of(OtherClassesInTest): "labels-fit-the-samples",
    source_of(OneKey): "names-tell-samples-apart",
    TestIsTrain: "test-images-are-no-training-images",
    source_of(ConstantFingerprint): "fingerprint-changes-with-the-data",
    source_of(FingerprintOfSizes): "fingerprint-changes-with-the-data",
    source_of(FingerprintOfThePlace): "fingerprint-is-that-of-a-copy",
    source_of(FingerprintOfTheOpening): "fingerprint-repeats",
    MissingIsEmpty: "a-missing-path-is-one-line",
    source_of(Trusting): "damage-is-said",
}
"""Class -> the one law that it breaks."""
SOUND = (Sound, Grey, source_of(MaskReader), StreamSource)
