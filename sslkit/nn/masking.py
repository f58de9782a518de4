"""Random masks over the patches of images.

Each follows from the sample alone: `random` is `Batch.random`, or a substream of it for a view, so
that a mask is the same in any micro-batch, on any rank and device. Nothing reads from the device.

Shapes: B images, N patches on a grid of rows and columns, numbered row by row. True is masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.randomness import SampleRandom

_ASPECTS = 4096
"""Aspect ratios that are drawn, at equal distances of their logarithm: a table is the same on every
device, and the exponential is not."""


def split_patches(
    random: SampleRandom, patches: int, kept: int, name: str = "mask"
) -> tuple[Tensor, Tensor]:
    """Numbers of patches in a uniformly random order: (B, kept) and the others, (B, patches - kept)
    int64. Raises ValueError unless both are some.

    Source: He et al. 2022, arXiv 2111.06377, section 3: sorted by noise, the first are kept."""
    if not 0 < kept < patches:
        raise ValueError(f"of {patches} patches 1 to {patches - 1} can be kept, not {kept}")
    order = random.permutation(name, patches)
    return order[:, :kept], order[:, kept:]


def coarse_masked(
    random: SampleRandom, grid: tuple[int, int], cell: tuple[int, int], ratio: float
) -> Tensor:
    """(B, N) bool: the image in cells of so many patches, of which ceil(ratio * cells) are masked,
    uniformly at random. Raises ValueError where cells do not fill the grid.

    Source: Xie et al. 2022, arXiv 2111.09886, section 3.2: cells of 32 pixels, 0.6 of them."""
    (rows, columns), (down, across) = grid, cell
    if rows % down or columns % across:
        raise ValueError(f"cells of {down} x {across} do not fill {rows} x {columns} patches")
    cells = (rows // down, columns // across)
    total = cells[0] * cells[1]
    ranks = random.permutation("mask", total).argsort(dim=1)
    masked = (ranks < math.ceil(total * ratio)).view(-1, *cells)
    masked = masked.repeat_interleave(down, 1).repeat_interleave(across, 2)
    return masked.flatten(1)


@dataclass(frozen=True)
class Blocks:
    """Rectangles of patches of random size, shape and place, which may overlap."""

    least: int = 16
    """Least area that is drawn, patches."""
    most: int | None = None
    """Greatest; None: as much as is still to be masked."""
    aspect: float = 0.3
    """Aspect ratios are log-uniform between this and its inverse."""
    tries: int = 10
    """Rectangles in a row that may fail, until the rest is filled patch by patch."""
    rounds: int = 32
    """Rectangles that are tried in all."""


def block_masked(
    random: SampleRandom,
    grid: tuple[int, int],
    count: int | Tensor,
    blocks: Blocks | None = None,
) -> Tensor:
    """(B, N) bool: exactly `count` patches, or count[i] of image i, (B,) int64, masked by
    rectangles. A rectangle that leaves the grid, masks nothing new or too much is drawn again;
    where no other fits, single patches chosen uniformly make up what is missing.

    Source: Bao et al. 2022, arXiv 2106.08254, algorithm 1; its code leaves the missing ones
    unmasked."""
    blocks = blocks or Blocks()
    rows, columns = grid
    device = random.indices.device
    missing = torch.as_tensor(count, device=device).expand(len(random.indices)).clone()
    masked = torch.zeros(len(missing), rows, columns, dtype=torch.bool, device=device)
    failed = torch.zeros_like(missing)
    drawn = random.uniform("blocks", 4 * blocks.rounds).view(-1, blocks.rounds, 4).unbind(1)
    aspects = _aspect_table(blocks.aspect).to(device)
    for draw in drawn:
        open_ = (missing > 0) & (failed < blocks.tries)
        if _may_end_early(device) and not open_.any():
            break
        inside = _rectangles(draw, missing, grid, aspects, blocks)
        new = (inside & ~masked).sum((1, 2))
        taken = open_ & (new > 0) & (new <= _at_most(missing, blocks))
        masked |= inside & taken[:, None, None]
        missing -= torch.where(taken, new, 0)
        failed = torch.where(taken, 0, failed + 1)
    return _filled(random, masked.flatten(1), missing)


def _may_end_early(device: torch.device) -> bool:
    """Whether values can be looked at without waiting for the device; the mask is the same."""
    return device.type == "cpu"


def _at_most(missing: Tensor, blocks: Blocks) -> Tensor:
    return missing if blocks.most is None else missing.clamp(max=blocks.most)


def _rectangles(
    draw: Tensor, missing: Tensor, grid: tuple[int, int], aspects: Tensor, blocks: Blocks
) -> Tensor:
    """(B, rows, columns) bool: a rectangle each; empty where it would fill a side of the grid.
    draw: (B, 4) uniform in [0, 1): area, aspect, row and column."""
    area = blocks.least + (_at_most(missing, blocks) - blocks.least) * draw[:, 0]
    aspect = aspects[(draw[:, 1] * len(aspects)).long()]
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).round().long()
    size = torch.tensor(grid, device=draw.device)
    corner = (draw[:, 2:] * (size - sides + 1)).long()
    fits = (sides < size).all(1)
    within = []
    for side, length in enumerate(grid):
        at = torch.arange(length, device=draw.device)
        first = corner[:, side, None]
        within.append((at >= first) & (at < first + sides[:, side, None]))
    return within[0][:, :, None] & within[1][:, None, :] & fits[:, None, None]


def _filled(random: SampleRandom, masked: Tensor, missing: Tensor) -> Tensor:
    """Masks so many more patches of each image, in a random order."""
    words = random.bits("fill", masked.shape[1])
    order = words.masked_fill(masked, 1 << 32).argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1)
    return masked | (ranks < missing[:, None])


def _aspect_table(least: float) -> Tensor:
    """(_ASPECTS,) float32."""
    span = -2.0 * math.log(least)
    logarithms = [math.log(least) + span * (i + 0.5) / _ASPECTS for i in range(_ASPECTS)]
    return torch.tensor([math.exp(value) for value in logarithms])
