"""SimMIM: fill in the pixels of masked cells, which pass the encoder as mask tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
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
    Tokens,
)
from sslkit.errors import RecipeError
from sslkit.nn.masking import coarse_masked
from sslkit.nn.numerics import full_precision

from .pixels import Pixels


class SimMIM(Method):
    """Cells of 32 x 32 pixels are masked: their patches pass the encoder as a learned token, and
    one linear layer predicts their pixels.

    The loss is the absolute error, mean over the masked pixels, on the scale that the backbone
    normalises images to. Masks are drawn by image and step; all images have as many masked cells.
    The encoder computes all tokens, so that backbones with relative positions (Beits) are taken
    too. Source: Xie et al. 2022, arXiv 2111.09886.
    """

    trains_class_token: ClassVar[bool] = False
    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({})
    """Nothing: each image is its own target, and tokens of a healthy encoder lie close together."""

    class Config(ComponentConfig):
        mask_ratio: float = Field(default=0.6, gt=0.0, lt=1.0)
        """Part of the cells that is masked, rounded up."""
        cell: PositiveInt = 32
        """Side of a cell, pixels: a multiple of the patch and a divisor of the view. 32 is for
        views of 192 and 224 px."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"simmim needs 1 view, but the augmentation makes {len(facts.views)}"

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.pixels = Pixels(backbone, "simmim", facts)
        rows, columns = self.pixels.grid
        height, width = self.pixels.layout.patch_size
        if config.cell % height or config.cell % width or (rows * height) % config.cell:
            raise RecipeError(
                f"method.cell: {config.cell} px; it must be a multiple of the patch, {height} x "
                f"{width} px, and a divisor of the view, {rows * height} px"
            )
        self.cell = config.cell // height, config.cell // width
        cells = (rows // self.cell[0]) * (columns // self.cell[1])
        if cells < 2 or config.mask_ratio * cells > cells - 1:
            raise RecipeError(
                f"method.mask_ratio: {config.mask_ratio:g} masks all of {cells} cells; lower it, "
                "or method.cell"
            )
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.pixels.layout.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.predict = nn.Linear(self.pixels.layout.width, self.pixels.values)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F), of the masked images; loss (B,), of each image."""
        (images,) = batch.views
        tokens, masked = self._tokens(batch)
        apart = full_precision(self.predict(tokens.patches)) - self.pixels.of(images)
        errors = (apart.abs().mean(2) * masked).sum(1)
        return {
            "features": self.backbone.pool_tokens(tokens),
            "loss": errors / masked.sum(1),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        # All images have as many masked patches: the mean over images is that over pixels.
        return StepOutput(embeddings["loss"].mean())

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, S, S) in [0, 1]: as they are, without their masked cells, and with these
        filled in."""
        tokens, masked = self._tokens(batch)
        return self.pixels.pictures(batch.views[0], self.predict(tokens.patches), masked)

    def _tokens(self, batch: Batch) -> tuple[Tokens, Tensor]:
        """Tokens of the masked images, and which patches are masked, (B, N) bool."""
        masked = coarse_masked(batch.random, self.pixels.grid, self.cell, self.config.mask_ratio)
        token = self.mask_token[0, 0]
        return self.backbone.tokens(batch.views[0], masked=masked, mask_token=token), masked
