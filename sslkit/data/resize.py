"""Resizing of single uint8 images, for images that are decoded on demand.

Torch's uint8 kernel is four times as fast as float and as Pillow; like Pillow it rounds to whole
numbers between its two passes. Bilinear stays within 1/255 of the float result. Bicubic is also
clamped there, which moves one value in a thousand by more than 1/255, by up to 17/255 beside hard
edges (60 photographs): nothing to a random crop, which takes it (decision 0020), and too much for
evaluation and packs, which compute bicubic in float.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sslkit.api import Preprocess
from sslkit.nn.image import Interpolation

_LONGEST, _KEPT = 8, 4
_LARGE = 1 << 22
"""Pixels of an image whose channels are resized one after the other: to the same bits, in a third
of the memory."""


def resize(images: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Antialiased resize of (B, C, H, W) to (B, C, *size): uint8 to uint8, float [0, 1] alike."""
    if tuple(images.shape[-2:]) == size:
        return images
    if images.dtype == torch.uint8 and interpolation == "bilinear":
        return functional.interpolate(images, size=size, mode=interpolation, antialias=True)
    parts = [images]
    if images.shape[-2] * images.shape[-1] > _LARGE:
        parts = list(torch.split(images, 1, dim=1))
    resized = torch.cat(
        [
            functional.interpolate(
                part.to(torch.float32), size=size, mode=interpolation, antialias=True
            )
            for part in parts
        ],
        dim=1,
    )
    if images.dtype == torch.uint8:
        return resized.round_().clamp_(0, 255).to(torch.uint8)
    return resized.clamp_(0.0, 1.0)


def crop_view(
    image: Tensor,
    box: tuple[int, int, int, int],
    flip: bool,
    size: int | tuple[int, int],
    how: Interpolation,
) -> Tensor:
    """One view of one image: (C, H, W) uint8 to (C, size, size), or (C, *size), uint8.

    The crop is cut out first, so that no pixel outside of it has an influence.
    box: top, left, height, width in pixels.
    """
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width]
    sides = (size, size) if isinstance(size, int) else size
    if tuple(crop.shape[-2:]) != sides:
        crop = functional.interpolate(crop, size=sides, mode=how, antialias=True)
    return crop[0].flip(-1) if flip else crop[0]


def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to `shorter` pixels (torchvision's rule)."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def prepare_for_encoder(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Resize of the shorter side, then centre crop, as torchvision's `Resize` and `CenterCrop`.

    Of images more than 8 times as long as wide only the middle is looked at, which the crop does
    not reach beyond: a line of a million pixels would become a picture of gigabytes.

    images: (B, C, H, W) uint8 or float in [0, 1]; the result has the same type and side
    `preprocess.size`.
    """
    images = _middle(images)
    height, width = resized_shape(images.shape[-2], images.shape[-1], preprocess.resize)
    resized = resize(images, (height, width), preprocess.interpolation)
    side = preprocess.size
    if min(height, width) < side:
        raise ValueError(
            f"preprocess.resize {preprocess.resize} is below preprocess.size {side}; "
            "it must be at least as large"
        )
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return resized[..., top : top + side, left : left + side]


def _middle(images: Tensor) -> Tensor:
    """The middle part, 4 times as long as wide, of images more than 8 times as long."""
    height, width = images.shape[-2:]
    if width > _LONGEST * height:
        left = (width - _KEPT * height) // 2
        return images[..., left : left + _KEPT * height]
    if height > _LONGEST * width:
        top = (height - _KEPT * width) // 2
        return images[..., top : top + _KEPT * width, :]
    return images
