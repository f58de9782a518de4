"""Tokens: what a transformer makes of an image, before it is pooled to one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sslkit.errors import RecipeError


class NoTokensError(RecipeError):
    """Raised where a backbone has no tokens, or cannot drop them; the message is one line."""


@dataclass(frozen=True)
class TokenLayout:
    """What tokens `Backbone.tokens` gives of an image."""

    patch_size: tuple[int, int]
    """Height and width of a patch, pixels."""
    width: int
    """D, the width of a token."""
    prefix: int
    """P, tokens before those of patches: class token, registers and the like."""
    has_class_token: bool
    """Whether the first of them is a class token."""
    blocks: int
    """Blocks that the tokens pass, one after the other."""
    drops: bool
    """Whether some patches can be left out: `keep` of `Backbone.tokens`."""
    normed: bool
    """Whether tokens come behind the final norm of the network. False where it normalises what it
    has pooled, or not at all."""
    pools_class_token: bool = False
    """Whether `Backbone.pool_tokens` looks at the class token and at no patch."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of so many pixels. Patches are numbered row by
        row."""
        return height // self.patch_size[0], width // self.patch_size[1]


class Tokens(NamedTuple):
    """B images of N patches, or the n of them that were kept."""

    prefix: Tensor
    """(B, P, D): class token, registers; P is 0 where the network has none."""
    patches: Tensor
    """(B, N, D) row by row, or (B, n, D) in the order of `keep`."""
    blocks: tuple[Tokens, ...] = ()
    """What the blocks that were asked for gave, in that order and before any final norm."""
