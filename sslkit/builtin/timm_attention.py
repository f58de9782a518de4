"""Where the class token of timm's transformers looks."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from sslkit.api import NoTokensError
from sslkit.nn.modes import frozen

from .timm_tokens import block_arguments, positioned, token_layout


def class_attention(model: nn.Module, images: Tensor) -> Tensor:
    """(B, heads, N): the attention of the class token to the patches in the last block, in
    evaluation mode and without gradient. images come normalised. Raises NoTokensError."""
    layout = token_layout(model)
    if layout is None or not layout.has_class_token:
        raise NoTokensError(
            f"backbone.model: {type(model).__name__} as it is set has no class token whose "
            "attention could be shown; valid are timm's VisionTransformers and Beits with one"
        )
    vit: Any = model
    with frozen(model):
        tokens, arguments = positioned(vit, vit.patch_embed(images)), block_arguments(vit)
        for block in vit.blocks[:-1]:
            tokens = block(tokens, **arguments)
        found = _attention_of(copy.deepcopy(vit.blocks[-1]), tokens, arguments)
    return found[:, :, 0, layout.prefix :]


def _attention_of(block: nn.Module, tokens: Tensor, arguments: dict[str, Tensor]) -> Tensor:
    """(B, heads, T, T): what the block multiplies values by. Fused attention never has it, so it is
    switched off, in a block that is the caller's own: the step after its softmax is dropout."""
    weights: list[Tensor] = []
    for name, module in block.named_modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if name.rpartition(".")[2] == "attn_drop":
            module.register_forward_pre_hook(lambda _, given: weights.append(given[0]))
    block(tokens, **arguments)
    if len(weights) != 1 or weights[0].ndim != 4:
        raise NoTokensError(
            f"backbone.model: {type(block).__name__}, its last block, has no attention that "
            "could be shown"
        )
    return weights[0]
