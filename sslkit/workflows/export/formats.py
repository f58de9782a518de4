"""The formats of `sslkit export`: how each is written, and how any program loads it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sslkit.errors import ExportError

from . import onnx_format, timm_format, torch_format
from .round_trip import Embed
from .source import ExportSource


@dataclass(frozen=True)
class Format:
    """One way to hand an encoder to another program."""

    name: str
    """As `--format` takes it."""
    file: str
    """The file with the network."""
    normalization_inside: bool
    """Whether the network takes images in [0, 1] and normalises by itself."""
    write: Callable[[ExportSource, Path], None]
    """Writes the network, and what else the format needs, into a folder. Raises ExportError."""
    load: Callable[[Path], tuple[Embed, ...]]
    """Every way in which the folder can be loaded: from its files alone."""
    usage: Callable[[ExportSource], str]
    """Python that loads and calls the network, for the model card; `images` is its input."""
    requires: tuple[str, ...] = ()
    """Modules of an optional extra, whose name is that of the format."""


FORMATS = {
    found.name: found
    for found in (
        Format(
            "timm", timm_format.FILE, False,
            timm_format.write, timm_format.load, timm_format.usage,
        ),
        Format(
            "onnx", onnx_format.FILE, True,
            onnx_format.write, onnx_format.load, onnx_format.usage, onnx_format.MODULES,
        ),
        Format(
            "torch-export", torch_format.FILE, True,
            torch_format.write, torch_format.load, torch_format.usage,
        ),
    )
}  # fmt: skip


def find_format(name: str) -> Format:
    """The format of this name, with everything installed that it needs. Raises ExportError."""
    found = FORMATS[name]
    missing = [module for module in found.requires if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(
            f"--format {name}: needs {', '.join(missing)}, not installed here: "
            f"pip install 'sslkit[{name}]'"
        )
    return found
