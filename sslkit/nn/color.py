"""Colour operations on whole batches, each sample with its own factor.

Results equal torchvision's functionals on float images. Images are (B, C, H, W) float in [0, 1],
factors (B,). Saturation, hue and grey need RGB, C = 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

LUMA: Final = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in the grey value (ITU-R BT.601, as torchvision rounds them)."""

Planes = Sequence[Tensor]
"""The channels of images apart, C tensors (B, H, W): with them a compiler makes one pass over the
pixels where it would compute what channels share once for each channel."""


def _beside(factor: Tensor, images: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), with as many dimensions as `images`."""
    return factor.view(-1, *[1] * (images.dim() - 1))


def _unit(values: Tensor) -> Tensor:
    """Clamps an intermediate result to [0, 1]. Overwrites it."""
    if torch.compiler.is_compiling():
        # Vector code for `clamp` takes care of NaN, at eight instructions. This is four, to 6e-8.
        return torch.relu(1.0 - torch.relu(1.0 - values))
    return values.clamp_(0.0, 1.0)


def luma(images: Tensor) -> Tensor:
    """The grey value of RGB images: (B, 1, H, W)."""
    return luma_of_planes((images[:, 0:1], images[:, 1:2], images[:, 2:3]))


def luma_of_planes(planes: Planes) -> Tensor:
    """The grey value of red, green and blue, in their shape."""
    red, green, blue = planes
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def grayscale(images: Tensor) -> Tensor:
    """RGB images with all three channels equal to the grey value."""
    return luma(images).expand_as(images)


def mean_luma(images: Tensor) -> Tensor:
    """The mean grey value of each image, (B, 1, 1, 1); of all channels where they are not RGB."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return luma(means) if images.shape[1] == 3 else means.mean(dim=1, keepdim=True)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, clamped to [0, 1]; of images or of a plane."""
    factor = _beside(factor, images)
    return _unit((images * factor).add_((1.0 - factor) * other))


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the values of images or of a plane; factors are not negative."""
    return _unit(images * _beside(factor, images))


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the distance to the mean grey value of the image."""
    return blend(images, mean_luma(images), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the distance of each pixel to its grey value."""
    return blend(images, luma(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` of a full circle, -0.5 to 0.5, in exact HSV."""
    return torch.stack(turn_hue(images.unbind(1), shift), dim=1)


def turn_hue(planes: Planes, shift: Tensor) -> list[Tensor]:
    """`adjust_hue` of red, green and blue.

    The usual six cases are two closed forms. With value V, floor m and chroma c = V - m, the
    distance of the hue from red, in sixths of the circle, is (c - (r - m) + (g - m) + (b - m)) / c,
    towards green where g > b, else towards blue. A channel of the turned colour is V - c times a
    trapezium of the new hue. Only plain arithmetic: selecting by masks costs ten times as much in
    eager mode on a CPU.
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    floor = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - floor
    distance = (green + blue).sub_(red).add_(value).sub_(floor, alpha=2.0)
    # Grey pixels have distance 0 and chroma 0: any divisor keeps them grey.
    distance = distance.div_(chroma + 1e-12)
    if torch.compiler.is_compiling():  # whose vector code calls a function for `copysign`
        hue = torch.where(green > blue, distance, -distance)
    else:
        hue = distance.copysign_(green - blue)
    hue = hue.mul_(1.0 / 6.0).add_(_beside(shift, hue))
    hue = hue.sub_(hue.floor()).mul_(6.0)
    to_cyan = _unit((hue - 3.0).abs_().sub_(1.0))
    to_green = _unit((hue - 2.0).abs_().sub_(1.0))
    to_blue = _unit(hue.sub_(4.0).abs_().sub_(1.0))
    return [
        torch.addcmul(floor, chroma, to_cyan),
        torch.addcmul(value, chroma, to_green, value=-1.0),
        torch.addcmul(value, chroma, to_blue, value=-1.0),
    ]
