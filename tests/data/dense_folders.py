"""Small real folders in the formats of Pascal VOC and COCO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sslkit.api import IGNORED_PIXEL
from sslkit.builtin.sources.scenes import Scenes, ScenesReader
from sslkit.builtin.sources.voc import CLASSES

PALETTE = [value for index in range(256) for value in (index, 255 - index, index // 2)]


def scenes(count: int, split: str = "train", **fields: Any) -> ScenesReader:
    config = Scenes.Config(num_train=count, num_test=count, **{"size": 32, **fields})
    reader = Scenes(config).open("train" if split == "train" else "test")
    assert reader is not None
    return reader


def write_mask(path: Path, mask: np.ndarray[Any, Any], mode: str = "P") -> None:
    image = Image.fromarray(mask.astype(np.uint8))
    if mode == "P":
        image = image.convert("P") if image.mode == "P" else image
        image.putpalette(PALETTE)
    image.save(path)


def annotation_xml(
    objects: Sequence[tuple[str, Sequence[float], int]], size: tuple[int, int] = (32, 32)
) -> str:
    """objects: (class, left, top, right, bottom from 0 and past the last pixel, difficult)."""
    parts = []
    for name, (left, top, right, bottom), difficult in objects:
        parts.append(
            f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{difficult}</difficult><bndbox><xmin>{left + 1:g}</xmin>"
            f"<ymin>{top + 1:g}</ymin><xmax>{right:g}</xmax><ymax>{bottom:g}</ymax></bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
            "<ymax>2</ymax></bndbox></part></object>"
        )
    height, width = size
    return (
        "<annotation><folder>VOC2012</folder><filename>x.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"<segmented>1</segmented>{''.join(parts)}</annotation>"
    )


def write_voc(root: Path, count: int = 4, year: str = "2012") -> Path:
    """A development kit of scenes, whose shapes are the first classes of VOC. Object 0 of image 0
    of each split is difficult, and the first row of every mask is ignored."""
    folder = root / f"VOC{year}"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main",
                 "ImageSets/Segmentation"):  # fmt: skip
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, listed in (("train", "train"), ("test", "val")):
        reader = scenes(count, split)
        names = [f"{year}_{listed}_{index:06d}" for index in range(count)]
        for kind in ("Main", "Segmentation"):
            (folder / "ImageSets" / kind / f"{listed}.txt").write_text("\n".join(names) + "\n")
        for index, name in enumerate(names):
            image = Image.fromarray(reader.read(index))
            image.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            mask = reader.mask(index).copy()
            mask[0] = IGNORED_PIXEL
            write_mask(folder / "SegmentationClass" / f"{name}.png", mask)
            boxes = reader.boxes(index)
            objects = [
                (CLASSES[label], corners, int(index == 0 and number == 0))
                for number, (corners, label) in enumerate(
                    zip(boxes.corners.tolist(), boxes.labels.tolist(), strict=True)
                )
            ]
            (folder / "Annotations" / f"{name}.xml").write_text(annotation_xml(objects))
    return root


def instances(reader: ScenesReader, names: Sequence[str]) -> dict[str, Any]:
    """The content of a file of instances; ids are neither dense nor in order."""
    categories = [{"id": 3 * i + 5, "name": f"kind {i}", "supercategory": "x"} for i in range(8)]
    images, annotations = [], []
    for index, name in enumerate(names):
        images.append({"id": 1000 - index, "file_name": name, "height": 32, "width": 32})
        boxes = reader.boxes(index)
        for corners, label in zip(boxes.corners.tolist(), boxes.labels.tolist(), strict=True):
            left, top, right, bottom = corners
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": 1000 - index,
                    "category_id": 3 * label + 5, "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "segmentation": [[left, top, right, top, right, bottom]],
                }
            )  # fmt: skip
    return {
        "info": {}, "licenses": [], "images": images, "annotations": annotations,
        "categories": categories[::-1],
    }  # fmt: skip


def write_coco(root: Path, count: int = 4) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, name in (("train", "train2017"), ("test", "val2017")):
        (root / name).mkdir()
        reader = scenes(count, split)
        files = [f"{index:012d}.jpg" for index in range(count)]
        for index, file in enumerate(files):
            Image.fromarray(reader.read(index)).save(root / name / file, quality=95)
        path = root / "annotations" / f"instances_{name}.json"
        path.write_text(json.dumps(instances(reader, files)))
    return root
