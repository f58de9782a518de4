"""Masks of blocks of patches, as many patches in every image."""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.errors import RecipeError
from sslkit.nn.masking import Blocks, block_masked
from sslkit.randomness import SampleRandom


class BlockMasks:
    """What the fields `mask_ratio` and `min_block` of a method say, for one grid of patches."""

    def __init__(self, grid: tuple[int, int], mask_ratio: float, min_block: int) -> None:
        """Raises RecipeError where all patches are masked or none, or blocks are too large."""
        patches = grid[0] * grid[1]
        self.grid, self.count = grid, round(mask_ratio * patches)
        """Masked patches of an image."""
        if not 0 < self.count < patches:
            raise RecipeError(
                f"method.mask_ratio: {mask_ratio:g} masks {self.count} of {patches} "
                "patches; some must be, and some not"
            )
        if min_block > self.count:
            raise RecipeError(
                f"method.min_block: {min_block} patches are more than the {self.count} "
                "that are masked; set it lower"
            )
        self._blocks = Blocks(least=min_block)

    def draw(self, random: SampleRandom) -> Tensor:
        """(B, N) bool, `count` of each row true; by image and step."""
        return block_masked(random, self.grid, self.count, self._blocks)

    def numbers(self, masked: Tensor) -> Tensor:
        """(B, count) int64: the numbers of the masked patches, in order."""
        order = masked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        return order[:, : self.count]
