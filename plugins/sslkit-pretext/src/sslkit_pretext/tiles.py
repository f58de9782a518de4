"""Tiles of an image: cut apart with gaps between them, and stripped of their colour and contrast.

Shapes: B images, C channels, S side of an image, t side of a tile, pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 3
NUM_TILES = GRID * GRID


def room(side: int, tile_size: int) -> int:
    """By how many pixels a tile can lie further to the right or further down in its cell of an
    image; negative where it is larger than the cell."""
    return side // GRID - tile_size


def cut_tiles(images: Tensor, shifts: Tensor, tile_size: int) -> Tensor:
    """(B, C, S, S) to (B, 9, C, t, t): tile i lies in cell i of a grid of 3 x 3, row by row.

    shifts: (B, 9, 2) int64, how far down and to the right a tile lies in its cell, 0 to
    `room(S, t)`. Where 3 does not divide S, the grid is in the middle."""
    side, device = images.shape[-1], images.device
    cell = side // GRID
    starts = torch.arange(GRID, device=device) * cell + (side - GRID * cell) // 2
    corners = torch.cartesian_prod(starts, starts) + shifts  # (B, 9, 2)
    pixels = corners[..., None] + torch.arange(tile_size, device=device)  # (B, 9, 2, t)
    rows, columns = pixels[:, :, 0, :, None], pixels[:, :, 1, None, :]
    image = torch.arange(len(images), device=device)[:, None, None, None]
    return images[image, :, rows, columns].movedim(-1, 2)


def standardised(tiles: Tensor) -> Tensor:
    """(..., C, t, t): every channel of every tile with mean 0 and variance 1; 0 where it is of one
    value."""
    return F.instance_norm(tiles.flatten(0, -4), eps=1e-5).view_as(tiles)
