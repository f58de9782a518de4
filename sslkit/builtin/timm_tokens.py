"""Tokens of timm's transformers, which hand out none before they are pooled.

The steps are those of the models' `forward_features`, in their own parts; a test holds every kind
of them to `forward`. timm takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import NoTokensError, TokenLayout, Tokens
from sslkit.nn.patches import gather_patches


@dataclass(frozen=True)
class TokenRequest:
    """The arguments of `Backbone.tokens`."""

    keep: Tensor | None = None
    lengths: Tensor | None = None
    masked: Tensor | None = None
    mask_token: Tensor | None = None
    blocks: Sequence[int] = ()


def token_layout(model: nn.Module) -> TokenLayout | None:
    """What tokens a model has: None but for timm's VisionTransformers and Beits."""
    if not (_is_vit(model) or _is_beit(model)):
        return None
    vit: Any = model
    if not isinstance(getattr(vit, "patch_drop", nn.Identity()), nn.Identity):
        return None  # it drops patches in training by itself, and says nothing of which
    if getattr(vit.patch_embed, "dynamic_img_pad", False):
        return None  # the grid would be larger than the image
    return TokenLayout(
        patch_size=_pair(vit.patch_embed.feat_ratio(as_scalar=False)),
        width=int(vit.embed_dim),
        prefix=int(vit.num_prefix_tokens),
        has_class_token=vit.cls_token is not None,
        blocks=len(vit.blocks),
        drops=_is_vit(model),  # a Beit's attention is biased by the positions of all patches
        normed=not isinstance(vit.norm, nn.Identity),
        pools_class_token=vit.cls_token is not None and vit.global_pool == "token",
    )


def take_tokens(model: nn.Module, images: Tensor, asked: TokenRequest) -> Tokens:
    """The tokens of images, which come normalised. Raises NoTokensError and ValueError."""
    vit: Any = model
    layout = token_layout(model)
    if layout is None:
        raise NoTokensError(
            f"backbone.model: {type(model).__name__} offers no tokens of patches; valid are timm's "
            "VisionTransformers and Beits, without patch_drop_rate and dynamic_img_pad"
        )
    _check(asked, layout, len(images), vit.patch_embed.dynamic_feat_size(images.shape[-2:]))
    patches = vit.patch_embed(images)  # (B, N, D), or (B, rows, columns, D) for images of any size
    if asked.masked is not None and asked.mask_token is not None:
        hidden = asked.masked.reshape(*patches.shape[:-1], 1)
        patches = torch.where(hidden, asked.mask_token.to(patches.dtype), patches)
    tokens = positioned(vit, patches)
    if asked.keep is not None:
        kept = gather_patches(tokens[:, layout.prefix :], asked.keep)
        tokens = torch.cat([tokens[:, : layout.prefix], kept], dim=1)
    counted = _counted(asked, layout.prefix)
    numbers = [number % layout.blocks for number in asked.blocks]
    tokens, outputs = _passed(vit, tokens, counted, numbers)
    wanted = tuple(_split(outputs[number], layout.prefix, counted) for number in numbers)
    return _split(vit.norm(tokens), layout.prefix, counted)._replace(blocks=wanted)


def pool_tokens(model: nn.Module, tokens: Tokens) -> Tensor:
    """(B, num_features) as the model pools its tokens. Raises NoTokensError."""
    if token_layout(model) is None:
        raise NoTokensError(f"backbone.model: {type(model).__name__} offers no tokens of patches")
    vit: Any = model
    joined = tokens.patches  # as they lie in memory, which decides on the bits of a mean
    if tokens.prefix.shape[1]:
        joined = torch.cat([tokens.prefix, tokens.patches], dim=1)
    features: Tensor = vit.forward_head(joined)
    return features


# --- The steps -----------------------------------------------------------------------------------


def positioned(vit: Any, patches: Tensor) -> Tensor:
    """(B, P + N, D): class and register tokens and patches, with their positions."""
    if _is_vit(vit):
        positioned: Tensor = vit.norm_pre(vit._pos_embed(patches))
        return positioned
    tokens = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1)
    if vit.pos_embed is not None:
        tokens = tokens + vit.pos_embed
    dropped: Tensor = vit.pos_drop(tokens)
    return dropped


def _passed(
    vit: Any, tokens: Tensor, counted: Tensor | None, wanted: Collection[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """(B, P + n, D) behind all blocks, and behind each of those wanted. counted: (B, P + n), what
    may be attended to; None: everything."""
    context = block_arguments(vit)
    if counted is not None:
        context["attn_mask"] = counted[:, None, None]
    outputs = {}
    for number, block in enumerate(vit.blocks):
        tokens = block(tokens, **context)
        if number in wanted:
            outputs[number] = tokens
    return tokens, outputs


def block_arguments(vit: Any) -> dict[str, Tensor]:
    """What every block takes beside its tokens."""
    if _is_beit(vit) and vit.rel_pos_bias is not None:
        return {"shared_rel_pos_bias": vit.rel_pos_bias()}
    return {}


def _counted(asked: TokenRequest, prefix: int) -> Tensor | None:
    """(B, P + n) bool: which tokens count; None where all do."""
    if asked.keep is None or asked.lengths is None:
        return None
    places = torch.arange(-prefix, asked.keep.shape[1], device=asked.keep.device)
    return places < asked.lengths[:, None]


def _split(tokens: Tensor, prefix: int, counted: Tensor | None) -> Tokens:
    if counted is not None:
        tokens = torch.where(counted[..., None], tokens, 0.0)
    return Tokens(tokens[:, :prefix], tokens[:, prefix:])


# --- What is asked, and of what ------------------------------------------------------------------


def _check(asked: TokenRequest, layout: TokenLayout, batch: int, grid: Sequence[int]) -> None:
    """Raises NoTokensError and ValueError. Looks at shapes alone."""
    rows, columns = grid
    shapes = {
        "keep": (asked.keep, (batch, None)),
        "lengths": (asked.lengths, (batch,)),
        "masked": (asked.masked, (batch, rows * columns)),
        "mask_token": (asked.mask_token, (layout.width,)),
    }
    for name, (given, valid) in shapes.items():
        if given is not None and not _fits(given, valid):
            written = ", ".join("n" if side is None else str(side) for side in valid)
            raise ValueError(f"tokens: {name} is {tuple(given.shape)}; valid is ({written})")
    if asked.keep is not None and not layout.drops:
        raise NoTokensError(
            "backbone.model: it adds relative positions to the attention of all patches, so that "
            "none can be left out; choose one with absolute positions, such as a vit_..."
        )
    if asked.lengths is not None and asked.keep is None:
        raise ValueError("tokens: lengths are of the rows of keep, which is missing")
    if (asked.masked is None) != (asked.mask_token is None):
        raise ValueError("tokens: masked and mask_token go together")
    for number in asked.blocks:
        if not -layout.blocks <= number < layout.blocks:
            raise ValueError(f"tokens: there is no block {number} of {layout.blocks}")


def _fits(given: Tensor, valid: Sequence[int | None]) -> bool:
    sides = zip(given.shape, valid, strict=False)
    return given.ndim == len(valid) and all(want in (None, side) for side, want in sides)


def _is_vit(model: Any) -> bool:
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(model, VisionTransformer)


def _is_beit(model: Any) -> bool:
    from timm.models.beit import Beit

    return isinstance(model, Beit)


def _pair(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, tuple | list) else (value, value)
    return int(height), int(width)
