"""`preprocess.json`: how to make the input of an exported encoder from an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sslkit.api import Backbone, Preprocess

from .source import ExportSource

FILE = "preprocess.json"
OUTPUT = "features"
"""Name of the output of a graph."""


def input_name(source: ExportSource) -> str:
    """Name of the input of a graph."""
    return f"{source.sample.noun}s"


def input_words(source: ExportSource) -> str:
    """Shape and values of the input, for the model card."""
    shape = ", ".join(map(str, source.shape))
    values = "float32, values in [0, 1]" if source.sample.is_image else source.sample.dtype
    return f"(B, {shape}) {values}"


def describe(source: ExportSource, file: str, normalization_inside: bool) -> dict[str, Any]:
    """What `preprocess.json` holds. file: the name of the file with the network."""
    is_image = source.sample.is_image
    return {
        "file": file,
        "input": {
            "name": input_name(source),
            "shape": ["batch", *source.shape],
            "dtype": "float32" if is_image else source.sample.dtype,
            "range": [0.0, 1.0] if is_image else None,
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", source.encoder.num_features],
            "dtype": "float32",
        },
        **_of_images(source.encoder),
        "normalization_inside": normalization_inside,
    }


def _of_images(encoder: Backbone) -> dict[str, Any]:
    """What is done to an image first; nothing for an encoder that takes samples as they are."""
    if not encoder.takes_images:
        return {}
    return {
        **dataclasses.asdict(encoder.preprocess),
        "resize_to": "shorter side",
        "antialias": True,
        "crop": "center",
    }


def read_preprocess(folder: Path) -> tuple[Preprocess | None, bool]:
    """The preprocessing of an export, None where samples are taken as they are; and whether the
    graph normalises by itself."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if "size" not in found:
        return None, bool(found["normalization_inside"])
    preprocess = Preprocess(
        size=found["size"],
        resize=found["resize"],
        interpolation=found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )
    return preprocess, bool(found["normalization_inside"])
