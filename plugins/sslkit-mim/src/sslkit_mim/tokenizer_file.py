"""Trained tokenizers: the networks that say which code stands for which part of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from sslkit import load_encoder
from sslkit.errors import CheckpointError, RecipeError
from sslkit.nn.weights import weight_file

HOW = "set it to the run of a tokenizer, such as one of cpu/vq_tokenizer_cifar10_short"


@runtime_checkable
class Tokenizer(Protocol):
    """What a backbone has, of whatever package, that can serve as a tokenizer. It is frozen: each
    image has the same codes in any batch, in training mode too."""

    num_codes: int
    """K."""
    channels: int
    """Of the images."""
    stride: int
    """Side of the square that a code stands for, pixels."""

    def codes_of(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, H / stride, W / stride) int64."""

    def images_of(self, codes: Tensor) -> Tensor:
        """(B, rows, columns) int64 -> images (B, C, H, W) in [0, 1]."""


def load_tokenizer(path: Path | None, channels: int) -> Tokenizer:
    """The tokenizer in a run folder, or in its `encoder.safetensors`, for images of so many
    channels. No code of the file runs. Raises RecipeError."""
    try:
        return _loaded(path, channels)
    except (CheckpointError, RecipeError) as error:
        raise RecipeError(f"method.tokenizer: {error}; {HOW}") from error


def _loaded(path: Path | None, channels: int) -> Tokenizer:
    if path is None:
        raise RecipeError("is missing")
    file = weight_file(path)
    if not file.is_file():
        hint = " (a run has it once it is finished)" if path.is_dir() else ""
        raise RecipeError(f"{file}: no such file{hint}")
    if file.suffix != ".safetensors":
        raise RecipeError(f"{file}: is no .safetensors file")
    found = load_encoder(file)
    if not isinstance(found, Tokenizer):
        raise RecipeError(f"{file}: is a {type(found).__name__}, which makes no codes")
    if found.channels != channels:
        raise RecipeError(
            f"{file}: its images have {found.channels} channel(s), those of the data {channels}"
        )
    return found
