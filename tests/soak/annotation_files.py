"""Annotations of Pascal VOC and COCO: XML, JSON, lists and masks from strangers."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.data.dense_folders import write_coco, write_voc

from . import nasty
from .attempt import Attempt
from .images import data_arguments
from .special import make_special
from .stock import Stock, pick

_ENTITIES = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(10))
_XML = {
    "billion laughs": f"<!DOCTYPE annotation [{_ENTITIES}]><annotation>&l9;</annotation>",
    "an external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&x;</name></object></annotation>",
    "an external DTD": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd"><annotation/>',
    "deep elements": "<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>",
    "another root": "<html/>",
    "nothing": "",
    "many objects": "<annotation>" + "<object/>" * 300_000 + "</annotation>",
    "a long text": f"<annotation><size><width>{'9' * 1_000_000}</width></size></annotation>",
}


def make_annotations(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A folder of annotated images with a changed file."""
    kind = generator.choice(["coco", "voc"])
    root = folder / "dense"
    (write_coco if kind == "coco" else write_voc)(root, 3)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".jpg")
    path = generator.choice(files)
    way = pick(generator, {"content": 5, "bytes": 2, "special": 1})
    if way == "special":
        what = make_special(generator, path)
    elif way == "content" and path.suffix == ".json":
        tree = json.loads(path.read_text())
        path.write_text(json.dumps(nasty.change_tree(generator, tree, generator.choice([1, 3]))))
        what = f"{path.name}: a changed tree"
    elif way == "content" and path.suffix == ".xml":
        name, text = generator.choice(list(_XML.items()))
        path.write_text(text)
        what = f"{path.name}: {name}"
    elif way == "content" and path.suffix == ".txt":
        path.write_text(path.read_text() + nasty.text(generator) + "\n", "utf-8", "replace")
        what = f"{path.name}: a strange name"
    else:
        path.write_bytes(nasty.change_bytes(generator, path.read_bytes()))
        what = f"{path.name}: changed bytes"
    task = "" if kind == "coco" else f", task: {generator.choice(['segmentation', 'detection'])}"
    command = pick(generator, {"validate": 2, "embed": 2})
    source = f"{{name: {kind}, root: dense{task}}}"
    return Attempt(command, data_arguments(command, source, stock), what)
