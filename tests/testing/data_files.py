"""Small data in every format that sslkit reads, made on the spot."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from sslkit.api import resolve_component
from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.data.pack_format import Settings
from sslkit.data.pack_writer import write_pack
from sslkit.host.plugins import load_plugins
from tests.data.dense_folders import write_coco, write_voc

COUNT = 24
CLASSES = ("circle", "square", "star")
_SYNTHETIC = {"num_train": COUNT, "num_test": COUNT, "size": 24}


def _images(split: str) -> list[np.ndarray[Any, Any]]:
    reader = Synthetic(Synthetic.Config(**_SYNTHETIC)).open("train" if split == "train" else "test")
    assert reader is not None
    return [reader.read(index) for index in range(COUNT)]


def image_folder(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        for index, image in enumerate(_images(split)):
            ending = "png" if index % 2 else "jpg"
            path = root / split / CLASSES[index % 3] / f"{index:03d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[: 24 - index % 5]).save(path)
    return {"train": root / "train", "test": root / "test"}


def parquet_files(root: Path) -> dict[str, Any]:
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "test"):
        rows = [
            {"bytes": _png(image), "path": f"{i}.png"} for i, image in enumerate(_images(split))
        ]
        labels = pa.array([index % 3 for index in range(COUNT)], pa.int64())
        table = pa.table({"image": pa.array(rows, struct_type), "label": labels})
        parquet.write_table(table, root / f"{split}.parquet", row_group_size=7)
    return {split: root / f"{split}.parquet" for split in ("train", "test")}


def _png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def mnist(root: Path) -> dict[str, Any]:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        pixels = noise.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
        labels = (np.arange(COUNT) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, COUNT, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 0x801, COUNT)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return {"dataset": "mnist", "root": root}


def pack(root: Path) -> dict[str, Any]:
    block = {"name": "synthetic", **_SYNTHETIC}
    slot = resolve_component(load_plugins().registry, "dataset", block)
    write_pack(
        slot, root / "x.sslpack", Settings(size=None, interpolation="bilinear"), num_threads=1
    )
    return {"file": root / "x.sslpack"}


def voc(root: Path) -> dict[str, Any]:
    return {"root": write_voc(root / "voc", 8), "task": "segmentation"}


def voc_boxes(root: Path) -> dict[str, Any]:
    return {**voc(root), "task": "detection"}


def coco(root: Path) -> dict[str, Any]:
    return {"root": write_coco(root / "coco", 8)}


SOURCES: Sequence[tuple[str, Callable[[Path], dict[str, Any]]]] = (
    ("coco", coco),
    ("digits", lambda root: {"size": 8}),
    ("image_folder", image_folder),
    ("pack", pack),
    ("parquet", parquet_files),
    ("scenes", lambda root: {"num_train": COUNT, "num_test": COUNT, "size": 32}),
    ("synthetic", lambda root: dict(_SYNTHETIC)),
    ("torchvision", mnist),
    ("voc", voc),
    ("voc", voc_boxes),
)
"""(data source, what writes its files into a folder and gives the fields that name them)."""
