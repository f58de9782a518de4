"""Pixels as targets: as the network sees them, patch by patch, and back to images."""

from __future__ import annotations

import torch
from torch import Tensor

from sslkit.api import Backbone, RunFacts, TokenLayout
from sslkit.errors import RecipeError
from sslkit.nn.numerics import full_precision
from sslkit.nn.patches import patchify, unpatchify


class Pixels:
    """The pixels of patches on the scale that the backbone normalises images to."""

    def __init__(self, backbone: Backbone, method: str, facts: RunFacts) -> None:
        """Raises RecipeError where the backbone has no tokens of patches, or they do not fill the
        view."""
        self.layout = layout_of(backbone, method)
        self.grid = grid_of(self.layout, facts)
        self.count = self.grid[0] * self.grid[1]
        """N, patches of an image."""
        down, across = self.layout.patch_size
        self.values = facts.channels * down * across
        """Numbers of a patch."""
        self._mean, self._std = backbone.preprocess.mean, backbone.preprocess.std

    def of(self, images: Tensor) -> Tensor:
        """(B, C, S, S) in [0, 1] -> (B, N, values), in float32 at least."""
        mean, std = self._statistics(images)
        return patchify((full_precision(images) - mean) / std, self.layout.patch_size)

    def pictures(self, images: Tensor, made: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Images (B, C, S, S) in [0, 1]: as they are, with their hidden patches in grey, and with
        what was made of these. made: (B, N, values), hidden: (B, N) bool."""
        mean, std = self._statistics(images)
        made = unpatchify(full_precision(made), self.layout.patch_size, self.grid) * std + mean
        where = unpatchify(
            hidden[..., None].expand(-1, -1, self.values), self.layout.patch_size, self.grid
        )
        return {
            "image": images,
            "seen": torch.where(where, 0.5, images),
            "reconstruction": torch.where(where, made.clamp(0.0, 1.0).to(images.dtype), images),
        }

    def _statistics(self, images: Tensor) -> list[Tensor]:
        found = (torch.tensor(values, device=images.device) for values in (self._mean, self._std))
        return [values.view(-1, 1, 1) for values in found]


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (B, n, 1) each, of patches (B, n, values): the root of the unbiased
    variance + 1e-6, as in the code of He et al. 2022, arXiv 2111.06377."""
    mean = patches.mean(-1, keepdim=True)
    return mean, (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def layout_of(backbone: Backbone, method: str) -> TokenLayout:
    """The tokens of a backbone. Raises RecipeError where it has none."""
    if backbone.token_layout is None:
        raise RecipeError(
            f"backbone: {method} needs tokens of patches, and this one offers none; choose a "
            "vision transformer, such as {name: timm, model: vit_small_patch16_224}"
        )
    return backbone.token_layout


def grid_of(layout: TokenLayout, facts: RunFacts) -> tuple[int, int]:
    """Rows and columns of patches in the view. Raises RecipeError where they do not fill it."""
    (view,) = facts.views
    side, (down, across) = max(view.sides), layout.patch_size
    if side % down or side % across:
        raise RecipeError(
            f"backbone.patch_size: patches of {down} x {across} px do not fill a view of {side} "
            "px; choose a divisor, or another augmentation.size"
        )
    return layout.grid(side, side)
