"""COCO: boxes of objects, from its files of instances."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sslkit.api import Boxes, DataSource, DataSourceConfig, HasBoxes
from sslkit.builtin.sources.annotations import bad, field_of, objects_in, read_json, within_image
from sslkit.builtin.sources.image_files import FileReader, refuse_outside
from sslkit.builtin.sources.paths import missing
from sslkit.errors import RecipeError

_MAX_SIDE = 1 << 26
"""Pixels: no image that is read has more in a line."""

Split = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class COCO(DataSource):
    """COCO's instances (Lin et al. 2014, arXiv:1405.0312), or any data in its format: images with
    boxes, read as they lie there; nothing is downloaded.

    Below `root`: the images in `<split>/` and their boxes in `annotations/instances_<split>.json`.
    The classes are the categories, by ascending id. No labels of whole images, and no masks."""

    class Config(DataSourceConfig):
        """Fields of the `coco` source."""

        root: Path
        """The folder that holds `annotations` and the folders of the images."""
        train: Split = "train2017"
        """Name of the training split."""
        test: Split | None = "val2017"
        """Name of the test split; null for none."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> COCOReader | None:
        """The reader of a split: reads the whole file of instances, some 20 s for all of COCO.

        Raises RecipeError for paths that are not as the recipe says, DataError for damaged
        files."""
        name = self.config.train if split == "train" else self.config.test
        if name is None:
            return None
        if split == "test" and name == self.config.train:
            raise RecipeError(
                f"data.test: {name} is the training split; name another one, or null for none"
            )
        root = self.config.root
        if not root.is_dir():
            raise missing("data.root", root, "a folder with COCO")
        path = root / "annotations" / f"instances_{name}.json"
        for wanted, what in ((path, "the boxes"), (root / name, "the images")):
            if not wanted.exists():
                raise missing(f"data.{split}", wanted, f"{what} of {name}")
        refuse_outside(f"data.{split}", path.parent, [path.name])
        instances = read_instances(path)
        refuse_outside(f"data.{split}", root / name, instances.files)
        return COCOReader(root / name, instances, path)


@dataclass(frozen=True)
class Instances:
    """What a file of instances says."""

    names: tuple[str, ...]
    """Names of the categories, by ascending id."""
    files: tuple[str, ...]
    """Files of the images, by ascending id; paths below the folder of the images."""
    boxes: tuple[Boxes, ...]
    """The objects of each image."""


class COCOReader(FileReader, HasBoxes):
    """Images of a split, with boxes."""

    def __init__(self, root: Path, instances: Instances, source: Path) -> None:
        super().__init__(root, instances.files, 3, None, None, {"annotations": str(source)})
        self._boxes = instances.boxes
        self.box_classes = instances.names

    def boxes(self, index: int) -> Boxes:
        return self._boxes[index]

    def fingerprint(self) -> str:
        """That of the images, the classes and all boxes."""
        digest = hashlib.blake2b(super().fingerprint().encode(), digest_size=8)
        digest.update("\0".join(self.box_classes).encode())
        for each in self._boxes:
            for part in (each.corners, each.labels, each.crowd):
                digest.update(part.tobytes())
        return digest.hexdigest()


def read_instances(path: Path) -> Instances:
    """Categories, images and boxes of a file `instances_<split>.json`. Raises DataError."""
    tree = read_json(path, without="segmentation")
    categories = _by_id(path, "category", objects_in(path, tree, "categories"))
    images = _by_id(path, "image", objects_in(path, tree, "images"))
    if not categories or not images:
        raise bad(path, "it has no categories or no images", "at least one of each")
    labels = {key: label for label, key in enumerate(categories)}
    names = tuple(field_of(path, f"category {k}", c, "name", str) for k, c in categories.items())
    files = tuple(_file_name(path, key, image) for key, image in images.items())
    grouped: dict[int, list[dict[str, Any]]] = {key: [] for key in images}
    for number, item in enumerate(objects_in(path, tree, "annotations"), start=1):
        where = f"annotation {number}"
        image = field_of(path, where, item, "image_id", int)
        if image not in grouped:
            raise bad(path, f"{where} is of image {image}", "the id of one of its images")
        grouped[image].append({**item, "_where": where})
    boxes = tuple(
        _boxes(path, grouped[key], labels, _size(path, key, image)) for key, image in images.items()
    )
    return Instances(names, files, boxes)


def _by_id(path: Path, kind: str, items: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for number, item in enumerate(items, start=1):
        key = field_of(path, f"{kind} {number}", item, "id", int)
        if key in found:
            raise bad(path, f"two of kind {kind} have the id {key}", "an id of its own for each")
        found[key] = item
    return dict(sorted(found.items()))


def _file_name(path: Path, key: int, image: Mapping[str, Any]) -> str:
    name: str = field_of(path, f"image {key}", dict(image), "file_name", str)
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise bad(path, f"image {key} has the file name {name!r}", "a path below its folder")
    return name


def _size(path: Path, key: int, image: dict[str, Any]) -> tuple[int, int]:
    height, width = (field_of(path, f"image {key}", image, f, int) for f in ("height", "width"))
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise bad(path, f"image {key} has {width} x {height} pixels", f"1 to {_MAX_SIDE:,} a side")
    return height, width


def _boxes(
    path: Path, items: Sequence[dict[str, Any]], labels: Mapping[int, int], size: tuple[int, int]
) -> Boxes:
    corners, classes, crowd = [], [], []
    for item in items:
        where = item["_where"]
        category = field_of(path, where, item, "category_id", int)
        if category not in labels:
            raise bad(path, f"{where} has category {category}", "the id of one of its categories")
        box = field_of(path, where, item, "bbox", list)
        if len(box) != 4 or not all(
            isinstance(value, (int, float)) and abs(value) < 1e9 for value in box
        ):
            raise bad(path, f"{where} has the bbox {str(box)[:60]}", "[left, top, width, height]")
        left, top, width, height = map(float, box)
        is_crowd = bool(item.get("iscrowd", 0))
        if not is_crowd and (width <= 0.0 or height <= 0.0):
            continue  # the published files have a few boxes without an area
        corners.append(
            within_image(
                path, f"the bbox of {where}", (left, top, left + width, top + height), size
            )
        )
        classes.append(labels[category])
        crowd.append(is_crowd)
    return Boxes(
        np.array(corners, dtype=np.float32).reshape(len(classes), 4),
        np.array(classes, dtype=np.int64),
        np.zeros(len(classes), dtype=np.bool_),
        np.array(crowd, dtype=np.bool_),
    )
