"""MoCo v3's ways with a Vision Transformer: its initialisation, and the frozen patch embedding.

They work on networks with timm's names: `patch_embed` with the convolution `proj` and `grid_size`,
`pos_embed`, `cls_token`, and linear layers `qkv`.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from sslkit.api import Backbone, start_transformer
from sslkit.errors import RecipeError
from sslkit.nn.positions import find_transformer


def freeze_patch_embedding(network: nn.Module) -> None:
    """Takes the patch embedding out of training (Chen et al. 2021, arXiv 2104.02057, section 4.2).

    Raises RecipeError where there is none."""
    try:
        transformer = find_transformer(network)
    except ValueError as error:
        raise RecipeError(f"method.freeze_patch_embedding: {error}; set it to false") from None
    for parameter in transformer.get_submodule("patch_embed").parameters():
        parameter.requires_grad_(False)


@torch.no_grad()
def initialize(backbone: Backbone) -> None:
    """Initialises as MoCo v3 does: position embeddings 2-D sine-cosine and fixed; the patch
    embedding uniform with the fans of a whole patch; linear layers Xavier-uniform (query, key and
    value as three) with zero biases; the class token N(0, 1e-12).

    Raises RecipeError as `start_transformer` does."""
    transformer = start_transformer(backbone, "vit_init")
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            parts = 3 if name.endswith("qkv") else 1
            fans = module.out_features // parts + module.in_features
            _uniform(module, math.sqrt(6.0 / fans))
    projection = transformer.get_submodule("patch_embed.proj")
    weight = projection.get_parameter("weight")  # (D, C, p, p)
    _uniform(projection, math.sqrt(6.0 / (weight[0].numel() + len(weight))))
    if isinstance(token := getattr(transformer, "cls_token", None), nn.Parameter):
        nn.init.normal_(token, std=1e-6)


def _uniform(module: nn.Module, bound: float) -> None:
    nn.init.uniform_(module.get_parameter("weight"), -bound, bound)
    if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
        nn.init.zeros_(bias)
