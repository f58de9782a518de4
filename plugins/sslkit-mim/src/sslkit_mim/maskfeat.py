"""MaskFeat: predict histograms of oriented gradients of masked patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    Progress,
    RunFacts,
    StepOutput,
)
from sslkit.errors import RecipeError
from sslkit.nn.numerics import full_precision
from sslkit.nn.patches import gather_patches, patchify

from .block_masks import BlockMasks
from .hog import oriented_gradients
from .pixels import grid_of, layout_of


class MaskFeat(Method):
    """Blocks of patches are masked; where they are, one linear layer predicts histograms of
    oriented gradients: how strong edges of each direction are in the cells of a patch, in each
    colour channel.

    Histograms have unit length, so contrast does not count. The loss is the squared error, mean
    over masked patches and their values; always guessing 0 costs 1 / bins where no cell is flat.
    Masked patches pass the encoder as a learned token. Source: Wei et al. 2022, arXiv 2112.09133.
    """

    trains_class_token: ClassVar[bool] = False
    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({})
    """Nothing: each image is its own target, and tokens of a healthy encoder lie close together."""

    class Config(ComponentConfig):
        mask_ratio: float = Field(default=0.4, gt=0.0, lt=1.0)
        """Part of the patches that is masked, in blocks: 78 of 196."""
        min_block: PositiveInt = 15
        """Least area that is drawn for a block, patches; 15 is for 196 of them."""
        bins: int = Field(default=9, ge=2)
        """Directions of a histogram, equal parts of 180 degrees."""
        cell: PositiveInt = 8
        """Side of the cell that a histogram is of, pixels: a divisor of the patch."""
        window: NonNegativeInt = 0
        """Side of the tiles, pixels, in which a Gaussian weights the gradients: a divisor of the
        view. 0: they count alike, as in the authors' code; 16 in mmselfsup's."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"maskfeat needs 1 view, but the augmentation makes {len(facts.views)}"
        elif config.window and any(side % config.window for side in facts.views[0].sides):
            side = max(facts.views[0].sides)
            yield "window", f"{config.window} px; it must be a divisor of the view, {side} px"

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        layout = layout_of(backbone, "maskfeat")
        grid = grid_of(layout, facts)
        self.masks = BlockMasks(grid, config.mask_ratio, config.min_block)
        down, across = layout.patch_size
        if down % config.cell or across % config.cell:
            raise RecipeError(
                f"method.cell: {config.cell} px; it must be a divisor of the patch, {down} x "
                f"{across} px"
            )
        self.cells = down // config.cell, across // config.cell
        self.mask_token = nn.Parameter(torch.empty(1, 1, layout.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        values = facts.channels * config.bins * self.cells[0] * self.cells[1]
        self.predict = nn.Linear(layout.width, values)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F), of the masked images; loss (B,), of each image."""
        (images,) = batch.views
        masked = self.masks.draw(batch.random)
        tokens = self.backbone.tokens(images, masked=masked, mask_token=self.mask_token[0, 0])
        numbers = self.masks.numbers(masked)
        made = full_precision(self.predict(gather_patches(tokens.patches, numbers)))
        target = gather_patches(self.targets(images), numbers)
        return {
            "features": self.backbone.pool_tokens(tokens),
            "loss": (made - target).square().mean((1, 2)),
        }

    def targets(self, images: Tensor) -> Tensor:
        """(B, N, cells * C * bins), in float32 at least: the histograms of each patch, those of a
        cell side by side."""
        config = self.config
        found = oriented_gradients(images, config.bins, config.cell, config.window)
        return patchify(found.flatten(1, 2), self.cells)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        # All images have as many masked patches: the mean over images is that over patches.
        return StepOutput(embeddings["loss"].mean())
