"""MAE's initialisation of a vision transformer."""

from __future__ import annotations

from torch import nn

from sslkit.api import Backbone, start_transformer


def initialize(backbone: Backbone) -> None:
    """Gives a vision transformer of timm the start that MAE's code gives: position embeddings
    two-dimensional sine-cosine and fixed, linear layers Xavier-uniform with zero biases, the patch
    embedding as a linear layer, class and register tokens N(0, 0.02^2).

    Raises RecipeError as `start_transformer` does."""
    network = start_transformer(backbone, "vit_init", column_first=True)
    initialize_layers(network)
    weight = network.get_submodule("patch_embed.proj").get_parameter("weight")  # (D, C, p, p)
    nn.init.xavier_uniform_(weight.data.view(len(weight), -1))
    for name in ("cls_token", "reg_token"):
        if isinstance(token := getattr(network, name, None), nn.Parameter):
            nn.init.normal_(token, std=0.02)


def initialize_layers(network: nn.Module) -> None:
    """Linear layers Xavier-uniform with zero biases, norms as torch makes them."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
