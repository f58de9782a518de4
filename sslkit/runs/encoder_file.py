"""encoder.safetensors: the weights of an encoder, and what it takes to build it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sslkit.errors import CheckpointError, TrainingError
from sslkit.files import reason
from sslkit.nn import safetensors_file

from .atomic import replacing
from .environment_file import MAX_SIDE
from .folder import RunFolder


@dataclasses.dataclass(frozen=True)
class EncoderDescription:
    """What stands beside the weights."""

    backbone: Mapping[str, Any]
    """The block of a recipe that builds the encoder, without starting weights."""
    channels: int
    image_size: int
    """Side of the images in pixels."""
    preprocess: Mapping[str, Any]
    """The fields of `sslkit.api.Preprocess`."""
    recipe_hash: str


def write_encoder(
    folder: RunFolder, weights: Mapping[str, Tensor], described: EncoderDescription
) -> Path:
    """Writes the encoder of a run. weights: on the CPU, contiguous. Raises TrainingError where the
    file cannot be written."""
    folder.require_writable()
    try:
        with replacing(folder.encoder) as temporary:
            safetensors_file.save(temporary, weights, vars(described))
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder.encoder}: cannot be written ({reason(error)}); mend that, then resume the run"
        ) from error
    return folder.encoder


def find_encoder(path: Path) -> Path | None:
    """The encoder's file that a path is, or that the run folder there holds; None where neither."""
    if path.is_dir():
        inside = RunFolder(path).encoder
        return inside if inside.exists() else None
    return path if path.suffix == ".safetensors" else None


def read_description(path: Path) -> EncoderDescription:
    """What stands beside the weights of a file. Raises CheckpointError."""
    try:
        found = safetensors_file.describe(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as an encoder: {reason(error)}") from error
    if found is None:
        raise CheckpointError(
            f"{path}: not written by sslkit (no '{safetensors_file.META}' in its metadata); "
            "load plain timm weights with backbone.weights"
        )
    numbers = [found.get("channels"), found.get("image_size")]
    sizes = [each for each in numbers if isinstance(each, int) and 0 < each <= MAX_SIDE]
    backbone, preprocess = found.get("backbone"), found.get("preprocess")
    if len(sizes) < 2 or not isinstance(backbone, dict):
        raise CheckpointError(f"{path}: its metadata is not that of this version of sslkit")
    return EncoderDescription(
        backbone,
        sizes[0],
        sizes[1],
        preprocess if isinstance(preprocess, dict) else {},
        str(found.get("recipe_hash")),
    )
