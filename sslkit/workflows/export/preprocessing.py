"""`preprocess.json`: how to make the input of an exported encoder from an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sslkit.api import Preprocess

from .source import ExportSource

FILE = "preprocess.json"
INPUT, OUTPUT = "images", "features"
"""Names of the input and the output of a graph."""


def describe(source: ExportSource, file: str, normalization_inside: bool) -> dict[str, Any]:
    """What `preprocess.json` holds. file: the name of the file with the network."""
    preprocess = source.encoder.preprocess
    size = preprocess.size
    return {
        "file": file,
        "input": {
            "name": INPUT,
            "shape": ["batch", source.channels, size, size],
            "dtype": "float32",
            "range": [0.0, 1.0],
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", source.encoder.num_features],
            "dtype": "float32",
        },
        **dataclasses.asdict(preprocess),
        "resize_to": "shorter side",
        "antialias": True,
        "crop": "center",
        "normalization_inside": normalization_inside,
    }


def read_preprocess(folder: Path) -> tuple[Preprocess, bool]:
    """The preprocessing of an export, and whether the graph normalises by itself."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    preprocess = Preprocess(
        size=found["size"],
        resize=found["resize"],
        interpolation=found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )
    return preprocess, bool(found["normalization_inside"])
