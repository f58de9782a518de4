"""MAE's decoder: a small transformer that sees all patches, hidden ones as a mask token."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from sslkit.api import ComponentConfig, Tokens
from sslkit.nn.mask_transformer import MaskTransformer
from sslkit.nn.patches import place_patches

from .vit_init import initialize_layers


class DecoderConfig(ComponentConfig):
    """The size of the decoder; the defaults are the paper's."""

    width: PositiveInt = 512
    """Width of a token; a multiple of 4 and of `heads`."""
    depth: PositiveInt = 8
    """Transformer blocks."""
    heads: PositiveInt = 16
    """Attention heads of each."""
    mlp_ratio: float = Field(default=4.0, gt=0.0)
    """Width of the hidden layer of a block's MLP, in units of `width`."""

    @model_validator(mode="after")
    def _divisible(self) -> DecoderConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width}: it must be a multiple of 4 and of the heads")
        return self


class Decoder(MaskTransformer):
    """Tokens of the visible patches -> `values` numbers for every patch."""

    def __init__(
        self, config: DecoderConfig, in_dim: int, grid: tuple[int, int], values: int
    ) -> None:
        sizes = config.width, config.depth, config.heads
        super().__init__(sizes, grid, in_dim=in_dim, out_dim=values, mlp_ratio=config.mlp_ratio)
        initialize_layers(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, visible: Tensor, prefix: int) -> Tensor:
        """tokens: (B, P + n, in_dim), of which the first `prefix` are no patches; visible: (B, n),
        the numbers of the others. Gives (B, N, values)."""
        narrow = self.narrow(tokens)
        count = len(self.positions)
        patches = place_patches(narrow[:, prefix:], visible, self.mask_token[0, 0], count)
        x = torch.cat([narrow[:, :prefix], patches + self.positions], dim=1)
        return self.transform(x, skip=prefix)


def decoded(decoder: Decoder, tokens: Tokens, visible: Tensor) -> Tensor:
    """(B, N, values) from what the encoder made of the visible patches."""
    joined = torch.cat([tokens.prefix, tokens.patches], dim=1)
    found: Tensor = decoder(joined, visible, tokens.prefix.shape[1])
    return found
