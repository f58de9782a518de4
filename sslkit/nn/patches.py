"""Patches of images, and rows of tokens: cutting, choosing, and putting back.

Patches are numbered row by row. Shapes: B images, N patches, D values of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, N, height * width * C): the pixels of each patch row by row, the channels
    of a pixel side by side. Raises ValueError where patches do not fill the image."""
    batch, channels, height, width = images.shape
    down, across = patch_size
    if height % down or width % across:
        raise ValueError(f"patches of {down} x {across} do not fill {height} x {width} pixels")
    rows, columns = height // down, width // across
    parts = images.reshape(batch, channels, rows, down, columns, across)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The images (B, C, H, W) of which `patchify` made patches. grid: rows and columns of them."""
    (down, across), (rows, columns) = patch_size, grid
    parts = patches.reshape(len(patches), rows, columns, down, across, -1)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * down, columns * across)


def gather_patches(patches: Tensor, chosen: Tensor) -> Tensor:
    """(B, N, D), (B, n) int64 -> (B, n, D): for each image the patches that `chosen` numbers."""
    return patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))


def place_patches(patches: Tensor, chosen: Tensor, filler: Tensor, count: int) -> Tensor:
    """The reverse: (B, n, D) -> (B, count, D) with each patch at its number and `filler`, (D,),
    everywhere else. `gather_patches` gives the patches back."""
    width = patches.shape[-1]
    filled = filler.to(patches.dtype).expand(len(patches), count, width)
    return filled.scatter(1, chosen[..., None].expand(-1, -1, width), patches)


def hidden_patches(kept: Tensor, count: int) -> Tensor:
    """(B, count) bool: the patches that `kept`, (B, n) int64, does not number."""
    hidden = torch.ones(len(kept), count, dtype=torch.bool, device=kept.device)
    return hidden.scatter(1, kept, torch.zeros_like(kept, dtype=torch.bool))
