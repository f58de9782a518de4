"""Colour operations on whole batches, each sample with its own factor.

Results equal torchvision's functionals on float images. Images are (B, C, H, W) float in [0, 1],
factors (B,). Saturation, hue and grey need RGB, C = 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

LUMA: Final = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in the grey value (ITU-R BT.601, as torchvision rounds them)."""

JITTER_OPS: Final = ("brightness", "contrast", "saturation", "hue")
"""The operations of colour jitter; the order of a sample is a permutation of their positions."""

_GROUPED_VALUES = 2**21
_BLOCK_VALUES = 2**18
"""On a CPU `color_jitter` sorts so many values at a time by operation, and works on blocks of so
many, which stay in the cache with their intermediate results. Large images go one by one."""


def _column(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def luma(images: Tensor) -> Tensor:
    """The grey value of RGB images: (B, 1, H, W)."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def grayscale(images: Tensor) -> Tensor:
    """RGB images with all three channels equal to the grey value."""
    return luma(images).expand_as(images)


def mean_luma(images: Tensor) -> Tensor:
    """The mean grey value of each image, (B, 1, 1, 1); of all channels where they are not RGB."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return luma(means) if images.shape[1] == 3 else means.mean(dim=1, keepdim=True)


def _blend(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, clamped to [0, 1]."""
    factor = _column(factor)
    return (images * factor).add_((1.0 - factor) * other).clamp_(0.0, 1.0)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the values; factors are not negative."""
    return (images * _column(factor)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the distance to the mean grey value of the image."""
    return _blend(images, mean_luma(images), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scales the distance of each pixel to its grey value."""
    return _blend(images, luma(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` of a full circle, -0.5 to 0.5, in exact HSV.

    The usual six cases are two closed forms. With value V, floor m and chroma c = V - m, the
    distance of the hue from red, in sixths of the circle, is (c - (r - m) + (g - m) + (b - m)) / c,
    towards green where g > b, else towards blue. A channel of the turned colour is V - c times a
    trapezium of the new hue. Only plain arithmetic: selecting by masks costs ten times as much on a
    CPU.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    floor = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - floor
    distance = (green + blue).sub_(red).add_(value).sub_(floor, alpha=2.0)
    # Grey pixels have distance 0 and chroma 0: any divisor keeps them grey.
    distance = distance.div_(chroma.clamp_min(1e-12))
    hue = distance.copysign_(green - blue).mul_(1.0 / 6.0).add_(shift.view(-1, 1, 1))
    hue = hue.sub_(hue.floor()).mul_(6.0)
    to_cyan = (hue - 3.0).abs_().sub_(1.0).clamp_(0.0, 1.0)
    to_green = (hue - 2.0).abs_().sub_(1.0).clamp_(0.0, 1.0)
    to_blue = hue.sub_(4.0).abs_().sub_(1.0).clamp_(0.0, 1.0)
    return torch.stack(
        [
            torch.addcmul(floor, chroma, to_cyan),
            torch.addcmul(value, chroma, to_green, value=-1.0),
            torch.addcmul(value, chroma, to_blue, value=-1.0),
        ],
        dim=1,
    )


_ADJUST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def color_jitter(
    images: Tensor,
    apply: Tensor,  # (B,) bool
    order: Tensor,  # (B, 4) int64, a permutation of the positions in JITTER_OPS per sample
    factors: Mapping[str, Tensor],  # operation -> (B,); operations without an entry are left out
) -> Tensor:
    """Torchvision's `ColorJitter` with own factors and an own order for each sample. Samples whose
    `apply` is False keep their bits."""
    if not factors:
        return images
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return _jitter_by_selection(images, apply, order, factors)
    chosen = apply.nonzero().squeeze(1)
    if not len(chosen):
        return images
    result = images.clone()
    if 8 * images[0].numel() > _BLOCK_VALUES:  # sorting pays only where a block holds several
        for row in chosen.tolist():
            one = slice(row, row + 1)
            for operation in order[row].tolist():
                if (name := JITTER_OPS[operation]) in factors:
                    result[one] = _ADJUST[name](result[one], factors[name][one])
        return result
    for rows in torch.split(chosen, _GROUPED_VALUES // images[0].numel()):
        chunk_factors = {name: factor[rows] for name, factor in factors.items()}
        changed = _jitter_by_grouping(images.index_select(0, rows), order[rows], chunk_factors)
        result.index_copy_(0, rows, changed)
    return result


def _jitter_by_selection(
    images: Tensor, apply: Tensor, order: Tensor, factors: Mapping[str, Tensor]
) -> Tensor:
    """Four slots, in each of which every sample takes the result of its own operation: more
    arithmetic, but shapes are fixed and nothing is read back, as compilers and GPUs want it.

    Brightness, contrast and saturation are one blend with 0, the mean grey value or grey.
    """
    for slot in range(order.shape[1]):
        operation = order[:, slot]
        other = torch.zeros_like(images[:, :1])
        factor = torch.zeros_like(images[:, 0, 0, 0])
        blends = torch.zeros_like(apply)
        for position, name in enumerate(JITTER_OPS[:3]):
            if name in factors:
                mine = operation == position
                blends = blends | mine
                factor = torch.where(mine, factors[name].to(factor.dtype), factor)
                if name == "contrast":
                    other = torch.where(_column(mine), mean_luma(images), other)
                elif name == "saturation":
                    other = torch.where(_column(mine), luma(images), other)
        blended = _blend(images, other, factor)
        changed = torch.where(_column(blends & apply), blended, images)
        if "hue" in factors:
            mine = apply & (operation == JITTER_OPS.index("hue"))
            changed = torch.where(_column(mine), adjust_hue(images, factors["hue"]), changed)
        images = changed
    return images


def _jitter_by_grouping(images: Tensor, order: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """In each slot the samples are sorted by operation, and each operation runs once on its group:
    the least arithmetic, for eager mode on a CPU. Overwrites `images`."""
    rows = torch.arange(len(images))
    step = _BLOCK_VALUES // images[0].numel()
    for slot in range(order.shape[1]):
        by_operation = order[rows, slot].argsort(stable=True)
        rows, images = rows[by_operation], images.index_select(0, by_operation)
        counts = order[:, slot].bincount(minlength=len(JITTER_OPS)).tolist()
        groups = zip(
            JITTER_OPS, torch.split(images, counts), torch.split(rows, counts), strict=True
        )
        for name, group, members in groups:
            if name in factors and len(members):
                mine = factors[name].index_select(0, members)
                for block, factor in zip(
                    torch.split(group, step), torch.split(mine, step), strict=True
                ):
                    block.copy_(_ADJUST[name](block, factor))
    return images.index_select(0, rows.argsort())
