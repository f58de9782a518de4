"""Histograms of oriented gradients of the cells of an image, as MaskFeat takes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.numerics import full_precision, without_autocast

_FLAT = 1e-6
"""Slopes, of pixels from 0 to 1, below which there is no edge: rounding leaves 1e-7, which the unit
length of a histogram would make as large as any edge."""
_ACROSS = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
"""Sobel's filter for the slope along a row."""


def oriented_gradients(images: Tensor, bins: int, cell: int, window: int = 0) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, C, bins, H / cell, W / cell), in float32 at least: for each
    channel and cell the lengths of the gradients added up by their direction, of unit length over
    the bins, or 0 where all is flat. Without gradient.

    Gradients are Sobel's, edges mirrored. Directions are those of lines, 180 degrees in `bins`
    equal parts, from the vertical; each pixel falls into one of them. window: side of the tiles in
    which pixels count less from the middle to the border, by a Gaussian of deviation window / 2; 0:
    all count alike. Source: Wei et al. 2022, arXiv 2112.09133, and its code, `HOGLayerC`."""
    with torch.no_grad(), without_autocast(images):
        across, down = _slopes(full_precision(images))
        length = torch.hypot(across, down)
        length = torch.where(length < _FLAT, 0.0, length)
        if window:
            height, width = images.shape[-2:]
            tile = _gaussian(window, length)
            length = length * tile.repeat(height // window, width // window)
        number = (torch.atan2(across, down) / math.pi * bins).floor().long() % bins
        parts = length.new_zeros(*length.shape[:2], bins, *length.shape[2:])
        parts.scatter_(2, number[:, :, None], length[:, :, None])
        cells = F.avg_pool2d(parts.flatten(1, 2), cell).mul(cell * cell)
        return F.normalize(cells.view(*parts.shape[:3], *cells.shape[2:]), dim=2)


def _slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) each: against the direction of rows and of columns."""
    channels = images.shape[1]
    across = images.new_tensor(_ACROSS).expand(channels, 1, 3, 3)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    first, second = (
        F.conv2d(padded, filters.contiguous(), groups=channels)
        for filters in (across, across.transpose(2, 3))
    )
    return first, second


def _gaussian(side: int, like: Tensor) -> Tensor:
    """(side, side), of sum 1."""
    places = torch.arange(side, dtype=like.dtype, device=like.device)
    weights = (-0.5 * ((places - (side - 1) / 2) / max(1, side // 2)).square()).exp()
    tile = weights[:, None] * weights
    return tile / tile.sum()
