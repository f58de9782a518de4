"""Sources with masks and boxes: scenes, Pascal VOC and COCO, and annotations that are hostile."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sslkit.api import IGNORED_PIXEL, Boxes, HasBoxes, HasMasks
from sslkit.builtin.sources import annotations
from sslkit.builtin.sources.coco import COCO, COCOReader, read_instances
from sslkit.builtin.sources.scenes import Scenes
from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.builtin.sources.voc import VOC, VOCReader
from sslkit.errors import DataError, RecipeError, SSLKitError
from tests.data.dense_folders import (
    annotation_xml,
    instances,
    scenes,
    write_coco,
    write_mask,
    write_voc,
)


def open_voc(root: Path, task: str, split: str = "train", **fields: Any) -> VOCReader:
    reader = VOC(VOC.Config(root=root, task=task, **fields)).open(split)  # type: ignore[arg-type]
    assert reader is not None
    return reader


def open_coco(root: Path, split: str = "train", **fields: Any) -> COCOReader:
    reader = COCO(COCO.Config(root=root, **fields)).open(split)  # type: ignore[arg-type]
    assert reader is not None
    return reader


def one_line(error: pytest.ExceptionInfo[SSLKitError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- Scenes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"size": 16}, {"size": 48, "cells": 4, "max_objects": 16}, {"channels": 1},
               {"label": "texture"}],
    ids=str,
)  # fmt: skip
def test_masks_and_boxes_of_scenes_belong_to_the_same_shapes(fields: dict[str, Any]) -> None:
    reader = scenes(40, **fields)
    assert reader.mask_classes == ("background", *reader.box_classes)
    for index in range(len(reader)):
        image, mask, boxes = reader.read(index), reader.mask(index), reader.boxes(index)
        assert image.shape == (*mask.shape, reader.channels)
        inside = np.zeros_like(mask, dtype=bool)
        for corners, label in zip(boxes.corners.astype(int), boxes.labels, strict=True):
            left, top, right, bottom = corners
            part = mask[top:bottom, left:right] == label + 1
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
            inside[top:bottom, left:right] |= part
        assert (inside == (mask > 0)).all()
        assert 1 <= len(boxes) <= reader._config.max_objects
        assert not boxes.difficult.any()


def test_scenes_follow_from_their_seed() -> None:
    first, again, other = scenes(6), scenes(6), scenes(6, data_seed=1)
    assert all((first.read(i) == again.read(i)).all() for i in range(6))
    assert not all((first.mask(i) == other.mask(i)).all() for i in range(6))
    assert not all((first.mask(i) == scenes(6, "test").mask(i)).all() for i in range(6))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert "train scene 0 (" in first.describe(0)


def test_every_class_occurs_and_no_factor_tells_the_place() -> None:
    reader = scenes(200, size=16)
    labels = np.concatenate([reader.boxes(i).labels for i in range(200)])
    assert np.bincount(labels, minlength=8).min() > 20


def test_scenes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="5 shapes do not fit into 2 x 2 cells"):
        Scenes.Config(max_objects=5)
    with pytest.raises(ValidationError, match="take at least 64"):
        Scenes.Config(size=32, cells=8)
    assert Scenes(Scenes.Config(num_test=0)).open("test") is None


def test_masks_and_boxes_are_abilities_of_some_readers() -> None:
    reader = Synthetic(Synthetic.Config(num_train=1)).open("train")
    assert reader is not None
    assert not isinstance(reader, (HasMasks, HasBoxes))
    assert not hasattr(reader, "mask")
    assert not hasattr(reader, "boxes")


# --- Pascal VOC -----------------------------------------------------------------------------------


def same_boxes(found: Boxes, expected: Boxes) -> None:
    assert (found.corners == expected.corners).all()
    assert (found.labels == expected.labels).all()


def test_voc_gives_back_what_was_written(tmp_path: Path) -> None:
    root, original = write_voc(tmp_path), scenes(4)
    boxes, masks = open_voc(root, "detection"), open_voc(root, "segmentation")
    assert len(boxes) == len(masks) == 4
    assert boxes.box_classes[:2] == ("aeroplane", "bicycle")
    assert len(masks.mask_classes) == 21
    assert not isinstance(boxes, HasMasks)
    assert not isinstance(masks, HasBoxes)
    for index in range(4):
        same_boxes(boxes.boxes(index), original.boxes(index))
        mask = masks.mask(index)
        assert (mask[0] == IGNORED_PIXEL).all()
        assert (mask[1:] == original.mask(index)[1:]).all()
        assert np.abs(masks.read(index).astype(int) - original.read(index)).mean() < 12
    assert boxes.boxes(0).difficult.tolist()[0]
    assert not boxes.boxes(1).difficult.any()
    assert not boxes.boxes(0).crowd.any()


def test_voc_joins_lists_of_several_years(tmp_path: Path) -> None:
    write_voc(tmp_path, year="2007")
    root = write_voc(tmp_path, year="2012")
    reader = open_voc(root, "detection", train=("2007/train", "2012/train", "2007/train"))
    assert len(reader) == 8
    assert "VOC2007/JPEGImages" in reader.describe(0)
    assert VOC(VOC.Config(root=root, task="detection", test=())).open("test") is None


def test_voc_takes_grey_masks_of_another_folder(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    source, target = (root / "VOC2012" / name for name in ("SegmentationClass", "Augmented"))
    target.mkdir()
    reader = open_voc(root, "segmentation")
    for index, path in enumerate(sorted(source.glob("*train*"))):
        write_mask(target / path.name, reader.mask(index), mode="L")
    augmented = open_voc(root, "segmentation", masks="Augmented")
    assert all((augmented.mask(i) == reader.mask(i)).all() for i in range(4))


def test_the_fingerprint_of_voc_covers_annotations(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    before = open_voc(root, "detection").fingerprint()
    assert open_voc(root, "detection").fingerprint() == before
    path = open_voc(root, "detection").annotation(2)
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    assert open_voc(root, "detection").fingerprint() != before


def test_paths_of_voc_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.root: .*expected the folder VOCdevkit") as error:
        open_voc(tmp_path / "none", "detection")
    one_line(error)
    root = write_voc(tmp_path / "kit")
    with pytest.raises(RecipeError, match=r"data.train: .*did you mean .*train.txt"):
        open_voc(root, "detection", train=("2012/trian",))
    (root / "VOC2012" / "Annotations" / "2012_train_000001.xml").unlink()
    with pytest.raises(RecipeError, match=r"000001.xml does not exist"):
        open_voc(root, "detection")
    open_voc(root, "segmentation")


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    listed = root / "VOC2012" / "ImageSets" / "Main" / "train.txt"
    listed.write_text("2012_train_000000\n../../secret\n")
    with pytest.raises(DataError, match=r"train.txt: entry 2 is '../../secret'; expected letters"):
        open_voc(root, "detection")
    with pytest.raises(ValidationError):
        VOC.Config(root=root, task="detection", train=("../2012",))


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
    "<annotation>&c;</annotation>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><size>&x;</size></annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "it declares a document type"),
        (OUTSIDE, "it declares a document type"),
        ('<!DOCTYPE a SYSTEM "http://example.org/a.dtd"><annotation/>', "declares a document type"),
        ("<annotation>&undefined;</annotation>", "not XML"),
        ("<annotation><size>", "not XML"),
        ("", "not XML"),
        ("\x00\x01", "not XML"),
        ("<a>" * 40 + "</a>" * 40, "33 deep"),
        ("<a>" + "<b/>" * 100_001 + "</a>", "100,001 elements"),
        ("<annotation></annotation>", "<annotation> has no <size>"),
        (annotation_xml([("unicorn", (1, 1, 5, 5), 0)]), "object 1 is a 'unicorn'"),
        (annotation_xml([("cat", (5, 1, 5, 5), 0)]), "the box of object 1 goes from"),
        (annotation_xml([("cat", (40, 1, 50, 5), 0)]), "inside its image of 32 x 32"),
        (annotation_xml([("cat", (float("nan"), 1, 5, 5), 0)]), "<xmin> of <bndbox> is 'nan'"),
        (annotation_xml([("cat", (1, 1, 1e30, 5), 0)]), "<xmax> of <bndbox> is '1e+30'"),
        (annotation_xml([("cat", (1, 1, 5, 5), 0)]).replace("bndbox", "b"), "has no <bndbox>"),
        (annotation_xml([("cat", (1, 1, 5, 5), 0)]).replace("<xmin>2</xmin>", ""), "has no <xmin>"),
    ],
    ids=range(17),
)
def test_bad_xml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    root = write_voc(tmp_path)
    reader = open_voc(root, "detection")
    reader.annotation(1).write_bytes(text.encode())
    with pytest.raises(DataError) as error:
        reader.boxes(1)
    line = one_line(error)
    assert line.startswith(str(reader.annotation(1)))
    assert message in line
    assert "expected" in line
    reader.boxes(0)


def test_xml_in_another_encoding_is_read_and_its_doctype_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(annotation_xml([]).encode("utf-16"))
    assert annotations.read_xml(path).tag == "annotation"
    path.write_bytes(BOMB.replace(' version="1.0"', ' version="1.0" encoding="utf-16"')
                     .encode("utf-16"))  # fmt: skip
    with pytest.raises(DataError, match="declares a document type"):
        annotations.read_xml(path)


def test_files_that_are_too_large_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.xml"
    path.write_text(annotation_xml([]))
    monkeypatch.setattr(annotations, "MAX_XML_BYTES", 20)
    with pytest.raises(DataError, match="more than 20 bytes; expected at most 20"):
        annotations.read_xml(path)


def rgb(path: Path) -> None:
    write_mask(path, np.zeros((32, 32, 3)), mode="RGB")


def wrong_class(path: Path) -> None:
    write_mask(path, np.full((32, 32), 77))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:90])


def text(path: Path) -> None:
    path.write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rgb, "a PNG of mode RGB"),
        (wrong_class, "pixels of class 77; expected classes 0 to 20, or 255"),
        (half, "not a whole PNG"),
        (text, "not a whole PNG"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_bad_masks_are_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    reader = open_voc(write_voc(tmp_path), "segmentation")
    spoil(reader.annotation(2))
    with pytest.raises(DataError, match=re.escape(message)) as error:
        reader.mask(2)
    assert one_line(error).startswith(str(reader.annotation(2)))


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_gives_back_what_was_written(tmp_path: Path) -> None:
    reader, original = open_coco(write_coco(tmp_path)), scenes(4)
    assert reader.box_classes == tuple(f"kind {i}" for i in range(8))
    for index in range(4):
        written = int(Path(reader.describe(index)).stem)  # images are in the order of their ids
        assert written == 3 - index
        same_boxes(reader.boxes(index), original.boxes(written))
        assert np.abs(reader.read(index).astype(int) - original.read(written)).mean() < 12
    assert reader.fingerprint() == open_coco(tmp_path).fingerprint()
    assert COCO(COCO.Config(root=tmp_path, test=None)).open("test") is None


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    tree = instances(scenes(2), ["a.jpg", "b.jpg"])
    edit(tree)
    path = tmp_path / "instances_x.json"
    path.write_text(json.dumps(tree))
    return path


def test_crowds_and_boxes_without_area(tmp_path: Path) -> None:
    def edit(tree: dict[str, Any]) -> None:
        first, second = tree["annotations"][:2]
        first["iscrowd"] = 1
        tree["annotations"] = [first, {**second, "bbox": [3, 3, 0, 4]}]

    found = read_instances(edited(tmp_path, edit))
    assert sum(len(boxes) for boxes in found.boxes) == 1
    assert [boxes.crowd.tolist() for boxes in found.boxes if len(boxes)] == [[True]]


def test_boxes_are_cut_to_their_image(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda t: t["annotations"][0].update(bbox=[-2, 20, 50, 30.5]))
    boxes = read_instances(path).boxes[1]
    assert boxes.corners[0].tolist() == [0.0, 20.0, 32.0, 32.0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("images"), "'images' is None; expected 'images' with a list of objects"),
        (lambda t: t.update(categories=[3]), "'categories' is [3]"),
        (lambda t: t.update(categories=[]), "it has no categories or no images"),
        (lambda t: t["categories"].append(t["categories"][0]), "of kind category have the id 26"),
        (lambda t: t["categories"][0].update(id="1"), "category 1: 'id' is '1'; expected a whole"),
        (lambda t: t["categories"][0].update(name=None), "'name' is None; expected text"),
        (lambda t: t["images"][0].update(file_name="../../etc/passwd"), "a path below its folder"),
        (lambda t: t["images"][0].update(file_name="/etc/passwd"), "a path below its folder"),
        (lambda t: t["images"][0].update(height=0), "image 1000 has 32 x 0 pixels"),
        (lambda t: t["annotations"][1].update(image_id=7), "annotation 2 is of image 7"),
        (lambda t: t["annotations"][1].update(category_id=7), "annotation 2 has category 7"),
        (lambda t: t["annotations"][1].update(bbox=[1, 2, 3]), "has the bbox [1, 2, 3]"),
        (lambda t: t["annotations"][1].update(bbox=[1, 2, "3", 4]), "[left, top, width, height]"),
        (lambda t: t["annotations"][1].update(bbox=[90, 2, 3, 4]), "inside its image of 32 x 32"),
        (lambda t: t["annotations"][1].update(bbox={"x": 1}), "'bbox' is {'x': 1}; expected a li"),
        (lambda t: t["annotations"][1].update(bbox=[1, 2, 1e300, 4]), "has the bbox"),
    ],
    ids=range(16),
)
def test_bad_instances_are_one_line(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = edited(tmp_path, edit)
    with pytest.raises(DataError) as error:
        read_instances(path)
    line = one_line(error)
    assert line.startswith(str(path))
    assert message in line


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"images": NaN}',
        b"[" * 200_000,
        b"\xff\xfe\xff",
        b'{"a": ' + b"9" * 5000,
    ],
    ids=range(7),
)
def test_bad_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "instances_x.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_instances(path)
    assert len(one_line(error)) < 400


def test_paths_of_coco_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.root: .*expected a folder with COCO"):
        open_coco(tmp_path / "none")
    root = write_coco(tmp_path / "coco")
    with pytest.raises(RecipeError, match=r"data.train: .*did you mean .*instances_train2017.json"):
        open_coco(root, train="train2071")
    (root / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(RecipeError, match=r"000000000002.jpg does not exist"):
        open_coco(root)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """A sparse file of terabytes costs nothing to send, and reading 2 GiB of it would not."""
    path = write_coco(tmp_path / "coco") / "annotations" / "instances_train2017.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"instances_train2017\.json: .*more than 2,147,483,648"):
        read_instances(path)


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened from now on, links followed."""
    read: list[str] = []
    opened = os.open

    def noted(file: Any, *rest: Any, **named: Any) -> int:
        read.append(os.path.realpath(file))
        return opened(file, *rest, **named)

    monkeypatch.setattr(os, "open", noted)
    return read


@pytest.mark.parametrize(
    "place",
    [
        "JPEGImages/2012_val_000001.jpg", "SegmentationClass/2012_val_000001.png",
        "Annotations/2012_val_000001.xml", "ImageSets/Segmentation/val.txt",
        "ImageSets/Main/val.txt",
    ],
)  # fmt: skip
def test_nothing_of_voc_is_read_through_a_link_that_leads_out(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the header of an image, nor a list, whose first line the message would show."""
    root = write_voc(tmp_path / "voc")
    path = root / "VOC2012" / place
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    read = noted_reads(monkeypatch)
    task = "detection" if "Main" in place or "Annotations" in place else "segmentation"
    with pytest.raises(RecipeError, match="is a link that leads out of") as error:
        open_voc(root, task, "test")
    assert place in one_line(error)
    assert str(tmp_path / "secret") not in read


@pytest.mark.parametrize(
    "place", ["val2017/000000000001.jpg", "annotations/instances_val2017.json"]
)
def test_nothing_of_coco_is_read_through_a_link_that_leads_out(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_coco(tmp_path / "coco")
    path = root / place
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    read = noted_reads(monkeypatch)
    with pytest.raises(RecipeError, match="is a link that leads out of") as error:
        open_coco(root, "test")
    assert place in one_line(error)
    assert str(tmp_path / "secret") not in read


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected"),
    [
        ("images", "width", 10**400, "pixels; expected 1 to 67,108,864 a side"),
        ("images", "height", 10**12, "pixels; expected 1 to 67,108,864 a side"),
        ("images", "file_name", "\ud800.jpg", "text without halves of letters"),
        ("categories", "name", "\udfff", "text without halves of letters"),
        ("annotations", "bbox", [10**400, 1, 3, 3], r"\[left, top, width, height\]"),
    ],
)
def test_numbers_and_letters_that_nothing_else_takes_are_refused(
    tmp_path: Path, kind: str, field: str, value: object, expected: str
) -> None:
    root = write_coco(tmp_path / "coco")
    path = root / "annotations" / "instances_train2017.json"
    tree = json.loads(path.read_text())
    tree[kind][0][field] = value
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=expected) as error:
        open_coco(root)
    assert len(one_line(error)) < 700
