"""Data sources whose files a copy of one field does not bring: patterns, files beside, files that
others name. Sound ones, each with one whose fingerprint is blind to a part."""

from __future__ import annotations

import csv
import glob
import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.api import DataSource, DataSourceConfig, ImageReader
from sslkit.errors import DataError

SIDE, COUNT = 8, 24
BYTES = SIDE * SIDE * 3


class Files(ImageReader):
    """One image in each file, all of whose content is in the fingerprint."""

    channels = 3
    image_size = (SIDE, SIDE)

    def __init__(self, files: list[Path], labels: list[int] | None = None) -> None:
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            raise DataError(f"data.files: {missing[:1] or 'there'} is no file; expected raw images")
        self.files = files
        self.labels = None if labels is None else np.array(labels)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> NDArray[np.uint8]:
        data = self.files[index].read_bytes().ljust(BYTES, b"\0")[:BYTES]
        return np.frombuffer(data, dtype=np.uint8).reshape(SIDE, SIDE, 3).copy()

    def key(self, index: int) -> str:
        return self.files[index].name

    def fingerprint(self) -> str:
        return self.digest(labels=True)

    def digest(self, *, labels: bool) -> str:
        found = hashlib.blake2b(digest_size=8)
        for file in self.files:
            found.update(file.read_bytes())
        if labels and self.labels is not None:
            found.update(self.labels.tobytes())
        return found.hexdigest()


class BlindToLabels(Files):
    """Leaves labels, which lie in another file, out of the fingerprint."""

    def fingerprint(self) -> str:
        return self.digest(labels=False)


class BlindToImages(Files):
    """Has a fingerprint of the names of its files."""

    def fingerprint(self) -> str:
        return str(len(self.files))


def write_images(folder: Path) -> None:
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(COUNT):
        noise.integers(0, 256, BYTES, dtype=np.uint8).tofile(folder / f"{number:02d}.raw")


class Pattern(DataSource):
    """Images that a pattern names."""

    reader: ClassVar[type[Files]] = Files

    class Config(DataSourceConfig):
        files: str
        """Such as `data/*.raw`."""

    @staticmethod
    def write(folder: Path) -> dict[str, Any]:
        write_images(folder / "images")
        return {"files": str(folder / "images" / "*.raw")}

    def open(self, split: Literal["train", "test"]) -> Any:
        if split == "test":
            return None
        found = sorted(map(Path, glob.glob(self.config.files)))  # noqa: PTH207
        if not found:
            raise DataError(f"data.files: {self.config.files} names no file; expected raw images")
        return self.reader(found)


class Braces(Pattern):
    """A pattern of a kind that the kit does not know."""

    @staticmethod
    def write(folder: Path) -> dict[str, Any]:
        write_images(folder / "images")
        return {"files": str(folder / "images" / "{all}.raw")}

    def open(self, split: Literal["train", "test"]) -> Any:
        return type(self)(self.Config(files=self.config.files.replace("{all}", "*")))._open(split)

    def _open(self, split: Literal["train", "test"]) -> Any:
        return Pattern.open(self, split)


class Several(DataSource):
    """A list of files, all of which it reads."""

    reader: ClassVar[type[Files]] = Files

    class Config(DataSourceConfig):
        files: list[Path]
        """The files."""

    @staticmethod
    def write(folder: Path) -> dict[str, Any]:
        write_images(folder / "images")
        return {"files": sorted((folder / "images").iterdir())}

    def open(self, split: Literal["train", "test"]) -> Any:
        return None if split == "test" else self.reader(self.config.files)


class Table(DataSource):
    """A table of names and labels beside a folder with the images."""

    reader: ClassVar[type[Files]] = Files
    whole_paths: ClassVar[bool] = False

    class Config(DataSourceConfig):
        table: Path
        """A CSV file: the path of an image beside it, and its label."""

    @classmethod
    def write(cls, folder: Path) -> dict[str, Any]:
        write_images(folder / "images")
        table = folder / "table.csv"
        start = folder if cls.whole_paths else Path()
        rows = [f"{start / 'images' / f'{n:02d}.raw'},{n % 3}\n" for n in range(COUNT)]
        table.write_text("".join(rows))
        (folder / "README.txt").write_text("twenty-four images\n")
        return {"table": table}

    def open(self, split: Literal["train", "test"]) -> Any:
        if split == "test":
            return None
        table = self.config.table
        if not table.is_file():
            raise DataError(f"data.table: {table} is no file; expected a table")
        try:
            rows = [(row[0], int(row[1])) for row in csv.reader(table.read_text().splitlines())]
        except (ValueError, IndexError) as error:
            raise DataError(f"data.table: {table} is damaged ({error})") from error
        return self.reader([table.parent / name for name, _ in rows], [label for _, label in rows])


class WholePaths(Table):
    """A table that names its images by whole paths."""

    whole_paths = True


class LabelsBeside(DataSource):
    """A folder of images, and their labels in a file beside it, which no field names."""

    reader: ClassVar[type[Files]] = Files

    class Config(DataSourceConfig):
        images: Path
        """The folder."""

    @staticmethod
    def write(folder: Path) -> dict[str, Any]:
        write_images(folder / "images")
        labels = "".join(f"{number % 3}\n" for number in range(COUNT))
        (folder / "labels.txt").write_text(labels)
        return {"images": folder / "images"}

    def open(self, split: Literal["train", "test"]) -> Any:
        if split == "test":
            return None
        images = self.config.images
        beside = images.parent / "labels.txt"
        if not images.is_dir() or not beside.is_file():
            raise DataError(f"data.images: {images} is no folder beside labels.txt")
        try:
            labels = [int(line) for line in beside.read_text().split()]
        except ValueError as error:
            raise DataError(f"data.images: {beside} is damaged ({error})") from error
        files = sorted(images.iterdir())
        if len(labels) != len(files):
            raise DataError(f"data.images: {len(labels)} labels of {len(files)} images")
        return self.reader(files, labels)


def read_by(reader: type[Files], base: type[Any]) -> type[Any]:
    """The source with another reader."""
    return type(f"{base.__name__}{reader.__name__}", (base,), {"reader": reader})


BLIND = "fingerprint-changes-with-the-data"
BROKEN: dict[type[Any], str] = {
    read_by(BlindToImages, Pattern): BLIND,
    read_by(BlindToImages, Several): BLIND,
    read_by(BlindToImages, Table): BLIND,
    read_by(BlindToLabels, Table): BLIND,
    read_by(BlindToLabels, LabelsBeside): BLIND,
}
"""Class -> the one law that it breaks."""
SOUND = (Pattern, Several, Table, LabelsBeside)
FILE_LAWS = (
    "fingerprint-is-that-of-a-copy",
    "fingerprint-changes-with-the-data",
    "a-missing-path-is-one-line",
    "damage-is-said",
)
OUT_OF_REACH: dict[type[Any], tuple[tuple[str, ...], str]] = {
    Braces: (FILE_LAWS, "it reads 00.raw, 01.raw, 02.raw and 21 more, to which no field of it"),
    WholePaths: (
        (*FILE_LAWS[:2], FILE_LAWS[3]),
        "a copy of its files still reads 00.raw, 01.raw, 02.raw and 21 more, which they name by a",
    ),
}
"""Class -> laws that cannot be tried, and why."""
