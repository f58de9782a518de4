"""MAE's initialisation of a vision transformer."""

from __future__ import annotations

from torch import nn

from sslkit.api import Backbone
from sslkit.errors import RecipeError
from sslkit.nn.positions import find_transformer, fix_positions


def initialize(backbone: Backbone) -> None:
    """Gives a vision transformer of timm the start that MAE's code gives: position embeddings
    two-dimensional sine-cosine and fixed, linear layers Xavier-uniform with zero biases, the patch
    embedding as a linear layer, class and register tokens N(0, 0.02^2).

    Raises RecipeError where it starts from weights, which would be lost, or has no positions."""
    if type(backbone).starting_weights(backbone.config) is not None:
        raise RecipeError(
            "method.vit_init: it would replace the weights that the backbone starts from; set it "
            "to false"
        )
    try:
        network = find_transformer(backbone)
        fix_positions(network, column_first=True)
    except ValueError as error:
        raise RecipeError(f"method.vit_init: {error}; set it to false") from None
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
