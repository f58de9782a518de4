"""I-JEPA's initialisation of vision transformers."""

from __future__ import annotations

import math

from torch import nn

from sslkit.api import Backbone, start_transformer

STD = 0.02
_LEAST_VALUES = 588
"""Pixel values of a patch of ViT-H/14, the smallest that `STD` was chosen for."""


def initialize(backbone: Backbone) -> None:
    """Gives a vision transformer of timm the start that I-JEPA's code gives: position embeddings
    two-dimensional sine-cosine and fixed, and `initialize_layers`.

    The weights of the patch embedding are N(0, 1 / n) where a patch has n values, fewer than the
    paper's 588: of 48 values, sums with weights of 0.02 are a fifth of the positions, all images
    look alike, and training makes them more so. Raises RecipeError as `start_transformer` does."""
    network = start_transformer(backbone, "vit_init", column_first=True)
    initialize_layers(network)
    weight = network.get_submodule("patch_embed.proj").get_parameter("weight")  # (D, C, p, p)
    values = weight[0].numel()
    if values < _LEAST_VALUES:
        nn.init.normal_(weight, std=1.0 / math.sqrt(values))


def initialize_layers(network: nn.Module) -> None:
    """Weights of linear layers and convolutions N(0, 0.02^2), biases zero, norms as torch makes
    them. Source: the code of Assran et al. 2023, arXiv 2301.08243; it also divides what block l
    adds by sqrt(2 l), and draws these weights anew before it trains."""
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=STD)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
