"""A narrow transformer behind an encoder that leaves patches out: it knows each by its position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .numerics import full_precision
from .positions import sine_cosine_positions


class MaskTransformer(nn.Module):
    """The parts of MAE's decoder and of I-JEPA's predictor: tokens of an encoder made `width` wide
    (`embed`), a `mask_token` (1, 1, width) for patches that it has not seen, fixed sine-cosine
    `positions` (N, width), pre-norm `blocks`, and `norm` with `predict` to `out_dim` numbers.

    What goes in where is the subclass's `forward`, and so are the weights of the start: layers
    start as torch makes them, `mask_token` is unset.
    Source: He et al. 2022, arXiv 2111.06377; Assran et al. 2023, arXiv 2301.08243."""

    positions: Tensor

    def __init__(
        self,
        sizes: tuple[int, int, int],
        grid: tuple[int, int],
        *,
        in_dim: int,
        out_dim: int,
        mlp_ratio: float,
    ) -> None:
        """sizes: width of a token, which 4 and the heads divide; blocks; heads of each. grid: rows
        and columns of patches."""
        super().__init__()
        width, depth, heads = sizes
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        positions = sine_cosine_positions(*grid, width, column_first=True)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                round(width * mlp_ratio),
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out_dim)

    def narrow(self, tokens: Tensor) -> Tensor:
        """(..., in_dim) -> (..., width), in float32 at least: blocks add to it, and sums in half
        precision lose what they add."""
        return full_precision(self.embed(tokens))

    def transform(self, x: Tensor, skip: int, ignored: Tensor | None = None) -> Tensor:
        """(B, n, width) -> (B, n - skip, out_dim), without the first `skip` tokens, which the
        others see. ignored: (B, n) bool, tokens that no other sees."""
        for block in self.blocks:
            x = block(x, src_key_padding_mask=ignored)
        found: Tensor = self.predict(self.norm(x[:, skip:]))
        return found
