"""Blocks of patches that are masked in the global views of images, and rows for what is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.api import Backbone, RunFacts
from sslkit.errors import RecipeError
from sslkit.nn.masking import Blocks, block_masked
from sslkit.randomness import SampleRandom

Places = tuple[Tensor, ...]
"""Indices of rows, one tensor (n,) int64 for each dimension."""


@dataclass(frozen=True)
class MaskedPatches:
    """The masked patches of B images with G global views of N patches, n in all: image by image,
    view by view."""

    masked: Tensor
    """(B, G, N) bool."""
    slots: Tensor
    """(B, G, M) bool: a row for each masked patch of a view, of the M that it may have."""
    chosen: Places
    """Where `masked` is true."""
    places: Places
    """Where `slots` is true."""

    @classmethod
    def of(cls, masked: Tensor, most: int) -> MaskedPatches:
        """Waits for the device, which has to say how many there are: make it before other work."""
        slots = torch.arange(most, device=masked.device) < masked.sum(dim=2)[..., None]
        chosen, places = (each.nonzero(as_tuple=True) for each in (masked, slots))
        return cls(masked, slots, chosen, places)

    def weights(self, dtype: torch.dtype) -> Tensor:
        """(B, G, M): one over the number of its view in each row that is taken, else 0; in float32
        at least, since 1 / 49 is wrong by a thousandth in bf16."""
        count = self.slots.sum(dim=2, keepdim=True).clamp(min=1)
        return self.slots.to(torch.promote_types(dtype, torch.float32)) / count

    def placed(self, rows: Tensor) -> Tensor:
        """(n, K) -> (B, G, M, K): the rows where they belong, else 0."""
        placed = rows.new_zeros(*self.slots.shape, rows.shape[-1])
        placed[self.places] = rows
        return placed


class ViewMasks:
    """What `mask_ratio` and `min_block` say, for one grid of patches."""

    def __init__(self, grid: tuple[int, int], ratio: tuple[float, float], min_block: int) -> None:
        """Raises RecipeError where no block fits."""
        patches = grid[0] * grid[1]
        self.grid, self.blocks = grid, Blocks(least=min_block)
        self.least, self.most = (max(1, int(part * patches)) for part in ratio)
        if min_block > self.most:
            usual = max(1, min(grid) // 3) ** 2
            raise RecipeError(
                f"method.min_block: {min_block} patches are more than the {self.most} of {patches} "
                f"that are masked at most, so that no block fits; set less, such as {usual}"
            )

    def draw(self, random: SampleRandom, views: int, probability: Tensor) -> MaskedPatches:
        """Of each view by keyed randomness: with this probability, a number that is uniform from
        `least` to `most`."""
        masked = [
            self._of_view(random.substream("view", view), probability) for view in range(views)
        ]
        return MaskedPatches.of(torch.stack(masked, dim=1), self.most)

    def _of_view(self, random: SampleRandom, probability: Tensor) -> Tensor:
        count = self.least + random.integers("count", 1, self.most - self.least + 1)[:, 0]
        chosen = random.uniform("chosen", 1)[:, 0] < probability
        return block_masked(random, self.grid, torch.where(chosen, count, 0), self.blocks)


def grid_of_patches(backbone: Backbone, facts: RunFacts, method: str) -> tuple[int, int]:
    """Rows and columns of patches in the global views. Raises RecipeError where there are none, or
    they do not fill the views."""
    layout = backbone.token_layout
    if layout is None or not layout.normed:
        raise RecipeError(
            f"backbone: {method} needs the tokens of patches behind the final norm, which this one "
            "does not give; choose a vision transformer with its class token, such as {name: "
            "timm, model: vit_small_patch16_224, pool: token}"
        )
    height, width = next(view.sides for view in facts.views if view.role == "global")
    down, across = layout.patch_size
    if height % down or width % across:
        raise RecipeError(
            f"backbone.patch_size: patches of {down} x {across} px do not fill a view of {height} "
            f"x {width} px; choose a divisor, or another augmentation.size"
        )
    return layout.grid(height, width)
