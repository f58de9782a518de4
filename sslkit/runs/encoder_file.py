"""encoder.safetensors: the weights of an encoder, and what it takes to build it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sslkit.api import SampleSpec
from sslkit.errors import CheckpointError, TrainingError
from sslkit.files import reason, replacing
from sslkit.nn import safetensors_file

from .environment_file import MAX_SIDE
from .folder import RunFolder


@dataclasses.dataclass(frozen=True)
class EncoderDescription:
    """What stands beside the weights."""

    backbone: Mapping[str, Any]
    """The block of a recipe that builds the encoder, without starting weights."""
    preprocess: Mapping[str, Any]
    """The fields of `sslkit.api.Preprocess`; none for an encoder of other samples."""
    recipe_hash: str
    channels: int | None = None
    """Channels of the images that it takes."""
    image_size: int | None = None
    """Side of the images in pixels."""
    shape: Sequence[int] | None = None
    """(C, *sides) of what it is built for, where that is no image."""
    sample: Mapping[str, Any] | None = None
    """The fields of `sslkit.api.SampleSpec`, where it takes no images."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, *sides) of what it is built for, (C, S, S) of images."""
        if self.shape is not None:
            return tuple(self.shape)
        return self.channels or 0, self.image_size or 0, self.image_size or 0

    @property
    def trained_on(self) -> SampleSpec:
        """What the samples were."""
        if self.sample is None:
            return SampleSpec((self.channels, None, None))
        return SampleSpec(tuple(self.sample["shape"]), str(self.sample["dtype"]))

    @property
    def is_sound(self) -> bool:
        """Whether a network may be built from it: the file may be a stranger's."""
        sizes = self.input_shape
        return (
            all(type(each) is int and 0 < each <= MAX_SIDE for each in sizes)  # True is no size
            and len(sizes) > 0
            and isinstance(self.backbone, dict)
            and len(self.backbone) > 0
            and (self.sample is None or _is_sample(self.sample))
        )


def _is_sample(sample: Any) -> bool:
    if not isinstance(sample, dict) or not isinstance(sample.get("shape"), list):
        return False
    sides = [side for side in sample["shape"] if side is not None]
    return isinstance(sample.get("dtype"), str) and all(
        type(side) is int and 0 < side <= MAX_SIDE for side in sides
    )


def write_encoder(
    folder: RunFolder, weights: Mapping[str, Tensor], described: EncoderDescription
) -> Path:
    """Writes the encoder of a run. weights: on the CPU, contiguous. Raises TrainingError where the
    file cannot be written."""
    folder.require_writable()
    try:
        with replacing(folder.encoder) as temporary:
            safetensors_file.save(temporary, weights, _fields(described))
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder.encoder}: cannot be written ({reason(error)}); mend that, then resume the run"
        ) from error
    return folder.encoder


def _fields(described: EncoderDescription) -> dict[str, Any]:
    return {name: value for name, value in vars(described).items() if value is not None}


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
    shape, preprocess = found.get("shape"), found.get("preprocess")
    described = EncoderDescription(
        found.get("backbone", {}),
        preprocess if isinstance(preprocess, dict) else {},
        str(found.get("recipe_hash")),
        found.get("channels"),
        found.get("image_size"),
        shape if isinstance(shape, list) else None,
        found.get("sample"),
    )
    if not described.is_sound:
        raise CheckpointError(f"{path}: its metadata is not that of this version of sslkit")
    return described
