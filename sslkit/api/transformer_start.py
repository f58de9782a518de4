"""What methods share that start a vision transformer in their own way."""

from __future__ import annotations

from torch import nn

from sslkit.errors import RecipeError
from sslkit.nn.positions import find_transformer, fix_positions

from .backbones import Backbone


def start_transformer(backbone: Backbone, field: str, *, column_first: bool = False) -> nn.Module:
    """The vision transformer of a backbone, under timm's names, with two-dimensional sine-cosine
    position embeddings that are not trained. The method, whose `field` asked for it, gives the
    layers their start. column_first: as in `fix_positions`.

    Raises RecipeError where the backbone starts from weights, which would be lost, and where it is
    no vision transformer or has no learned positions."""
    if type(backbone).starting_weights(backbone.config) is not None:
        raise RecipeError(
            f"method.{field}: it would replace the weights that the backbone starts from; set it "
            "to false"
        )
    try:
        network = find_transformer(backbone)
        fix_positions(network, column_first=column_first)
    except ValueError as error:
        raise RecipeError(f"method.{field}: {error}; set it to false") from None
    return network
