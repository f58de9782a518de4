"""Vision transformers of timm: where one is in a network, and fixed positions for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sine_cosine_positions(
    height: int,
    width: int,
    dim: int,
    temperature: float = 1e4,
    *,
    column_first: bool = False,
) -> Tensor:
    """(height * width, dim): sine and cosine of the row, then of the column, dim / 4 frequencies
    each. Raises ValueError where 4 does not divide dim.

    column_first: the column, then the row, as in the code of MAE and I-JEPA; MoCo v3 has the row
    first. Source: Chen et al. 2021, arXiv 2104.02057, section 4; He et al. 2022, arXiv 2111.06377.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, not {dim}")
    frequencies = temperature ** -(torch.arange(dim // 4) / (dim // 4))
    axes = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    first, second = reversed(axes) if column_first else axes
    angles = (axis.flatten()[:, None] * frequencies for axis in (first, second))
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def find_transformer(network: nn.Module) -> nn.Module:
    """The vision transformer of a network: the first module that owns a patch embedding, under
    timm's name `patch_embed`. Raises ValueError where there is none."""
    for module in network.modules():
        if isinstance(getattr(module, "patch_embed", None), nn.Module):
            return module
    raise ValueError("the network has no patch embedding (patch_embed)")


@torch.no_grad()
def fix_positions(network: nn.Module, *, column_first: bool = False) -> None:
    """Puts sine-cosine positions in place of a network's learned ones, and out of training; class
    and register tokens get none. The network has timm's names: `pos_embed`, (1, prefix + patches,
    D), and `patch_embed.grid_size`. Raises ValueError where there is no `pos_embed`."""
    embedding = getattr(network, "pos_embed", None)
    if not isinstance(embedding, nn.Parameter):
        raise ValueError("it has no learned position embedding (pos_embed) to replace")
    height, width = network.get_submodule("patch_embed").grid_size  # type: ignore[misc]
    positions = sine_cosine_positions(height, width, embedding.shape[2], column_first=column_first)
    embedding.zero_()
    embedding[0, -len(positions) :] = positions
    embedding.requires_grad_(False)
