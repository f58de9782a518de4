"""I-JEPA's predictor: a narrow transformer from the tokens of a context to those of a block."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from sslkit.api import ComponentConfig
from sslkit.nn.mask_transformer import MaskTransformer
from sslkit.nn.patches import gather_patches

from .multiblock import Regions
from .start import STD, initialize_layers


class PredictorConfig(ComponentConfig):
    """The size of the predictor; the defaults are the code's for ViT-H."""

    width: PositiveInt = 384
    """Width of a token; a multiple of 4 and of `heads`."""
    depth: PositiveInt = 12
    """Transformer blocks."""
    heads: PositiveInt = 16
    """Attention heads of each: in the code as many as the encoder has."""
    mlp_ratio: float = Field(default=4.0, gt=0.0)
    """Width of the hidden layer of a block's MLP, in units of `width`."""

    @model_validator(mode="after")
    def _divisible(self) -> PredictorConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width}: it must be a multiple of 4 and of the heads")
        return self


class Predictor(MaskTransformer):
    """Sees the context and, for each patch of one target block, a mask token with its position."""

    def __init__(self, config: PredictorConfig, dim: int, grid: tuple[int, int]) -> None:
        sizes = config.width, config.depth, config.heads
        super().__init__(sizes, grid, in_dim=dim, out_dim=dim, mlp_ratio=config.mlp_ratio)
        initialize_layers(self)
        nn.init.normal_(self.mask_token, std=STD)

    def forward(self, context: Tensor, regions: Regions) -> Tensor:
        """context: (B, n, D), tokens of `regions.context`. Gives (B, M, k, D) for
        `regions.targets`, each block from a pass of its own."""
        batch, blocks, length = regions.targets.shape
        positions = self.positions.expand(batch, -1, -1)
        shown = self.narrow(context) + gather_patches(positions, regions.context)
        asked = gather_patches(positions, regions.targets.flatten(1)) + self.mask_token
        asked = asked.reshape(batch * blocks, length, -1)
        x = torch.cat([shown.repeat_interleave(blocks, 0), asked], dim=1)
        found = self.transform(x, skip=shown.shape[1], ignored=self._ignored(regions))
        return found.reshape(batch, blocks, length, -1)

    @staticmethod
    def _ignored(regions: Regions) -> Tensor:
        """(B * M, n + k) bool: what stands behind the patches that count."""
        blocks = regions.targets.shape[1]
        parts = [
            torch.arange(rows.shape[-1], device=lengths.device) >= lengths[:, None]
            for rows, lengths in (
                (regions.context, regions.context_lengths),
                (regions.targets, regions.target_lengths),
            )
        ]
        return torch.cat(parts, dim=1).repeat_interleave(blocks, 0)
