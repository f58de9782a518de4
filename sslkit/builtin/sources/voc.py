"""Pascal VOC, as its development kit lays it out: masks or boxes of 20 classes."""

from __future__ import annotations

import hashlib
import io
from abc import abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from sslkit.api import IGNORED_PIXEL, Boxes, DataSource, DataSourceConfig, HasBoxes, HasMasks
from sslkit.builtin.sources.annotations import (
    bad,
    number_of,
    read_bytes,
    read_names,
    read_xml,
    text_of,
    within_image,
)
from sslkit.builtin.sources.decoding import MAX_PIXELS
from sslkit.builtin.sources.image_files import FileReader, refuse_outside
from sslkit.builtin.sources.paths import missing
from sslkit.builtin.sources.regular_files import is_regular
from sslkit.errors import DataError, RecipeError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
BACKGROUND = "background"

ImageSet = Annotated[str, Field(pattern=r"^\d{4}/[A-Za-z0-9_][A-Za-z0-9_.-]*$")]

_MAX_ANNOTATION_BYTES = 1 << 26


class VOC(DataSource):
    """Pascal VOC from a folder `VOCdevkit` (Everingham et al. 2010), with masks or with boxes. It
    is read as it lies there; nothing is downloaded.

    Below `root`, for each year: `VOC<year>/JPEGImages`, `VOC<year>/ImageSets/Segmentation` or
    `.../Main` with the lists, `VOC<year>/SegmentationClass` with masks and `VOC<year>/Annotations`
    with boxes. No labels of whole images."""

    class Config(DataSourceConfig):
        """Fields of the `voc` source."""

        root: Path
        """The folder that holds `VOC2007`, `VOC2012` and so on, usually `VOCdevkit`."""
        task: Literal["segmentation", "detection"]
        """`segmentation`: masks, and the lists in `ImageSets/Segmentation`; `detection`: boxes, and
        those in `ImageSets/Main`."""
        train: Annotated[tuple[ImageSet, ...], Field(min_length=1)] = ("2012/train",)
        """Lists of training images, as `<year>/<list>`; several are joined."""
        test: tuple[ImageSet, ...] = ("2012/val",)
        """Lists of test images; empty for none."""
        masks: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] = "SegmentationClass"
        """Folder of the masks of a year; `SegmentationClassAug` for the extended annotations."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> VOCReader | None:
        """The reader of a split: reads lists, and finds that images and annotations exist.

        Raises RecipeError for paths that are not as the recipe says, DataError for damaged
        lists."""
        config = self.config
        sets = config.train if split == "train" else config.test
        if not sets:
            return None
        if not config.root.is_dir():
            raise missing("data.root", config.root, "the folder VOCdevkit")
        entries = self._listed(f"data.{split}", sets)
        if split == "test":
            self._refuse_shared(entries)
        if not entries:
            raise RecipeError(
                f"data.{split}: the lists {', '.join(sets)} name no image; expected one name a line"
            )
        kind = VOCMasks if config.task == "segmentation" else VOCBoxes
        return kind(config, list(entries), f"data.{split}")

    def _listed(self, field: str, sets: Sequence[str]) -> dict[tuple[str, str], None]:
        """(folder of the year, image) of every line of some lists, once."""
        folder = "Segmentation" if self.config.task == "segmentation" else "Main"
        entries: dict[tuple[str, str], None] = {}
        for name in sets:
            year, _, listed = name.partition("/")
            within = self.config.root / f"VOC{year}"
            path = within / "ImageSets" / folder / f"{listed}.txt"
            if not is_regular(path):
                raise missing(field, path, f"the list {name} of images")
            refuse_outside(field, within, [str(path.relative_to(within))])
            entries |= {(f"VOC{year}", image): None for image in read_names(path)}
        return entries

    def _refuse_shared(self, test: Collection[tuple[str, str]]) -> None:
        """Raises RecipeError where test images are training images too."""
        train = self._listed("data.train", self.config.train)
        both = [entry for entry in test if entry in train]
        if both:
            raise RecipeError(
                f"data.test: {len(both):,} of {len(test):,} test images are also training images, "
                f"such as {'/'.join(both[0])}; name lists that share none"
            )


class VOCReader(FileReader):
    """Images of some lists, each with one file of annotations."""

    def __init__(self, config: VOC.Config, entries: list[tuple[str, str]], field: str) -> None:
        """field: what names the lists. Raises RecipeError for an image or an annotation that does
        not exist, or is a link that leads out of its folder."""
        self._config = config
        self._entries = entries
        paths = [f"{year}/JPEGImages/{name}.jpg" for year, name in entries]
        self._check(field, paths)  # before the first image is looked into
        super().__init__(config.root, paths, 3, None, None, {})

    def _check(self, field: str, paths: Sequence[str]) -> None:
        for name in dict(self._entries):
            root = self._config.root / name
            numbers = [i for i, (year, _) in enumerate(self._entries) if year == name]
            images = [paths[i].partition("/")[2] for i in numbers]
            notes = [str(self.annotation(i).relative_to(root)) for i in numbers]
            refuse_outside(field, root, [*images, *notes])

    @abstractmethod
    def annotation(self, index: int) -> Path:
        """The file with the mask or the boxes of an image."""

    def fingerprint(self) -> str:
        """That of the images, and of everything in the annotations."""
        digest = hashlib.blake2b(super().fingerprint().encode(), digest_size=8)
        for index in range(len(self)):
            data = read_bytes(self.annotation(index), _MAX_ANNOTATION_BYTES)
            digest.update(hashlib.blake2b(data).digest())
        return digest.hexdigest()


class VOCMasks(VOCReader, HasMasks):
    """The images with their masks."""

    mask_classes = (BACKGROUND, *CLASSES)

    def annotation(self, index: int) -> Path:
        year, name = self._entries[index]
        return self._config.root / year / self._config.masks / f"{name}.png"

    def mask(self, index: int) -> NDArray[np.uint8]:
        path = self.annotation(index)
        mask = _indices(path)
        wrong = np.setdiff1d(mask, [*range(len(self.mask_classes)), IGNORED_PIXEL])
        if len(wrong):
            raise bad(
                path,
                f"pixels of class {wrong[0]}",
                f"classes 0 to {len(self.mask_classes) - 1}, or {IGNORED_PIXEL} to ignore",
            )
        return mask


class VOCBoxes(VOCReader, HasBoxes):
    """The images with their boxes."""

    box_classes = CLASSES

    def annotation(self, index: int) -> Path:
        year, name = self._entries[index]
        return self._config.root / year / "Annotations" / f"{name}.xml"

    def boxes(self, index: int) -> Boxes:
        return _boxes(self.annotation(index))


def _indices(path: Path) -> NDArray[np.uint8]:
    """The palette indices of a PNG, which are the classes. Raises DataError."""
    data = read_bytes(path, _MAX_ANNOTATION_BYTES)
    wanted = "a PNG with one class index a pixel (palette or 8-bit grey)"
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in ("P", "L"):
                raise bad(path, f"a PNG of mode {image.mode}", wanted)
            if image.width * image.height > MAX_PIXELS:
                raise bad(path, f"{image.width} x {image.height} pixels", f"at most {MAX_PIXELS}")
            return np.array(image, dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # damaged files raise almost anything
        raise bad(path, f"not a whole PNG ({type(error).__name__})", wanted) from error


def _boxes(path: Path) -> Boxes:
    """Boxes count pixels from 1 and include the last one in the file. Raises DataError."""
    root = read_xml(path)
    size = root.find("size")
    if size is None:
        raise bad(path, f"<{root.tag}> has no <size>", "<size> with <width> and <height>")
    height, width = (int(number_of(path, size, tag)) for tag in ("height", "width"))
    corners, labels, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        name = text_of(path, item, "name")
        if name not in CLASSES:
            raise bad(path, f"object {number} is a {name!r}", f"one of {', '.join(CLASSES)}")
        box = item.find("bndbox")
        if box is None:
            raise bad(path, f"object {number} has no <bndbox>", "<bndbox>")
        left, top = (number_of(path, box, tag) - 1.0 for tag in ("xmin", "ymin"))
        right, bottom = (number_of(path, box, tag) for tag in ("xmax", "ymax"))
        where = f"the box of object {number}"
        corners.append(within_image(path, where, (left, top, right, bottom), (height, width)))
        labels.append(CLASSES.index(name))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return Boxes(
        np.array(corners, dtype=np.float32).reshape(len(labels), 4),
        np.array(labels, dtype=np.int64),
        np.array(difficult, dtype=np.bool_),
        np.zeros(len(labels), dtype=np.bool_),
    )
