"""Which patches I-JEPA shows, and which it asks for: a large block without several small ones.

Shapes: B images, N patches on a grid of rows and columns, numbered row by row; M target blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sslkit.randomness import SampleRandom


class Regions(NamedTuple):
    """Patches of B images. Rows have one length; where an image has fewer, the last name patches
    that do not count."""

    context: Tensor
    """(B, n) int64, the patches that are shown."""
    context_lengths: Tensor
    """(B,) int64, how many of a row count."""
    targets: Tensor
    """(B, M, k) int64, the patches of each target block."""
    target_lengths: Tensor
    """(B,) int64, how many of each row of `targets` count: the blocks of an image are of one
    size."""


_ROUNDING = 1e-6
"""Sides are computed in float32."""


@dataclass(frozen=True)
class MultiBlock:
    """Draws them, by image and step.

    The target blocks of an image have one size, drawn from `target_scale` (part of the image) and
    `target_aspect`, and places of their own; they may overlap. The context is a square block
    without the patches of the targets. Where fewer than `least_context` patches would be left, the
    last target is allowed to overlap, then the last two, and so on. Where more than `most_context`
    are left, so many of them are chosen at random.

    Source: Assran et al. 2023, arXiv 2301.08243, section 3 and appendix A.
    """

    grid: tuple[int, int]
    targets: int
    target_scale: tuple[float, float]
    target_aspect: tuple[float, float]
    context_scale: tuple[float, float]
    least_context: int
    most_context: int

    def draw(self, random: SampleRandom) -> Regions:
        """The same for an image in any batch, on any rank and device."""
        sizes = random.uniform("sizes", 3)
        target_sides = self._sides(sizes[:, 0], sizes[:, 1], self.target_scale, self.target_aspect)
        context_sides = self._sides(sizes[:, 2], sizes[:, 2], self.context_scale, (1.0, 1.0))
        corners = random.uniform("corners", 2 * (self.targets + 1)).view(-1, self.targets + 1, 2)
        blocks = self._rectangles(corners[:, 1:], target_sides)
        context = self._context(corners[:, :1], context_sides, blocks)
        chosen = blocks.logical_not().byte().argsort(dim=-1, stable=True)
        return Regions(
            context=self._first(random, context),
            context_lengths=context.sum(1).clamp(max=self.most_context),
            targets=chosen[..., : self.longest_target],
            target_lengths=target_sides.prod(1),
        )

    def covered(self, patches: Tensor, lengths: Tensor) -> Tensor:
        """(B, rows, columns) bool: the patches of each image that a row of `Regions` names, (B, n),
        up to its length, (B,)."""
        counts = torch.arange(patches.shape[1], device=patches.device) < lengths[:, None]
        none = counts.new_zeros(len(patches), self.grid[0] * self.grid[1])
        return none.scatter(1, patches, counts).view(-1, *self.grid)

    @cached_property
    def longest_target(self) -> int:
        """The most patches that a target block can have."""
        rows, columns = self.grid
        ends = torch.tensor([0.0, 1.0 - 2.0**-24], device="cpu")
        least, most = map(int, self._areas(ends, self.target_scale).tolist())
        areas = range(max(1, least), most + 1)
        # Sides as long as the grid stand for longer ones, too.
        blocks = product(areas, range(rows + 1), range(columns + 1))
        sizes = (
            _side(h, rows) * _side(w, columns) for a, h, w in blocks if self._is_drawn(a, h, w)
        )
        return max(sizes, default=1)

    def _is_drawn(self, area: int, height: int, width: int) -> bool:
        """Whether some aspect of a target block of this area has sides that are rounded so."""
        rows, columns = self.grid
        (below, above), (left, right) = _rounded_to(height, rows), _rounded_to(width, columns)
        least = max(self.target_aspect[0], below**2 / area, area / right**2)
        most = min(self.target_aspect[1], above**2 / area, area / left**2 if left else math.inf)
        return least <= most * (1.0 + _ROUNDING)

    def _sides(
        self, area: Tensor, shape: Tensor, scale: tuple[float, float], aspect: tuple[float, float]
    ) -> Tensor:
        """(B, 2) int64: height and width, 1 to a side of the grid less one. area, shape: (B,)
        uniform in [0, 1)."""
        rows, columns = self.grid
        patches = self._areas(area, scale)
        ratio = aspect[0] + (aspect[1] - aspect[0]) * shape
        sides = torch.stack([(patches * ratio).sqrt(), (patches / ratio).sqrt()], 1).round().long()
        limits = torch.tensor([max(1, rows - 1), max(1, columns - 1)], device=sides.device)
        return sides.clamp(min=1).minimum(limits)

    def _areas(self, area: Tensor, scale: tuple[float, float]) -> Tensor:
        """(B,) whole patches, of numbers uniform in [0, 1)."""
        rows, columns = self.grid
        return (rows * columns * (scale[0] + (scale[1] - scale[0]) * area)).floor()

    @property
    def smallest_context(self) -> int:
        """Patches of the smallest block that a context is, before targets are taken out of it."""
        least = torch.zeros(1, device="cpu")
        return int(self._sides(least, least, self.context_scale, (1.0, 1.0)).prod())

    def _rectangles(self, corners: Tensor, sides: Tensor) -> Tensor:
        """(B, M, N) bool. corners: (B, M, 2) uniform in [0, 1); sides: (B, 2)."""
        sides = sides[:, None]
        size = torch.tensor(self.grid, device=sides.device)
        first = (corners * (size - sides + 1)).long()
        within = []
        for axis, length in enumerate(self.grid):
            at = torch.arange(length, device=sides.device)
            start, side = first[..., axis, None], sides[..., axis, None]
            within.append((at >= start) & (at < start + side))
        return (within[0][..., :, None] & within[1][..., None, :]).flatten(2)

    def _context(self, corner: Tensor, sides: Tensor, blocks: Tensor) -> Tensor:
        """(B, N) bool."""
        (block,) = self._rectangles(corner, sides).unbind(1)
        context = block
        for number in range(1, self.targets + 1):  # with one target more to stay clear of
            without = block & ~blocks[:, :number].any(1)
            enough = without.sum(1, keepdim=True) >= self.least_context
            context = torch.where(enough, without, context)
        return context

    def _first(self, random: SampleRandom, context: Tensor) -> Tensor:
        """(B, most_context) int64: the patches of the context in random order, then others."""
        words = random.bits("order", context.shape[1])
        order = words.masked_fill(~context, 1 << 32).argsort(dim=1, stable=True)
        return order[:, : self.most_context]


def _side(drawn: int, length: int) -> int:
    """Of a block, on a grid of this length: 1 to a patch less."""
    return min(max(1, drawn), max(1, length - 1))


def _rounded_to(side: int, length: int) -> tuple[float, float]:
    """Between which numbers those lie that are rounded to a side; to `length`: or to more."""
    return max(0.0, side - 0.5), side + 0.5 if side < length else math.inf
