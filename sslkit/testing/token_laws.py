"""What a backbone promises of its tokens, where it has any."""

from __future__ import annotations

from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit.api import Backbone, NoTokensError, TokenLayout, Tokens
from sslkit.engine.contract import describe
from sslkit.nn.modes import frozen
from sslkit.nn.patches import gather_patches, hidden_patches, patchify, unpatchify

from .backbone_laws import BackboneLaws
from .laws import LawBrokenError, UntriedError, law, refuse
from .network_laws import CLOSE, STILL
from .small_runs import distance

_STATED = (*STILL, "tokens-are-as-stated")
_KEPT = (*_STATED, "patches-left-out-change-nothing")


class TokenLaws(BackboneLaws):
    """The laws of `Backbone.tokens`."""

    @law(
        "make forward(images) of pool_tokens(tokens(images)), and state in token_layout what "
        "tokens gives; where it gives none, leave all three out",
        needs=STILL,
    )
    def tokens_are_as_stated(self) -> str:
        """`tokens` gives prefix, patches and outputs of blocks as `token_layout` states, and
        `pool_tokens` of them is what `forward` gives; without a layout it raises NoTokensError."""
        network, images = self.used(), self.samples(3)
        layout = network.token_layout
        with frozen(network):
            if layout is None:
                try:
                    network.tokens(images)
                except NoTokensError:
                    raise SkipTest("it has no tokens of patches") from None
                raise LawBrokenError("token_layout is None, and tokens gives tokens")
            patches = _patches(layout, images)
            places = (-1, 0)
            tokens = network.tokens(images, blocks=places)
            refuse(len(tokens.blocks) != 2, f"{len(tokens.blocks)} outputs of 2 blocks asked for")
            for found in (tokens, *tokens.blocks):
                _refuse_other_shapes(found, layout, len(images), patches)
            far = distance(network.pool_tokens(tokens), network(images))
        refuse(not far <= CLOSE, f"pool_tokens is {far:.2g} from what forward gives")
        return f"{layout.prefix} and {patches} tokens of {layout.width}"

    @law(
        "take patches out before they meet in attention, give those kept in the order of keep, "
        "each with the position of its number, and attend to nothing behind lengths",
        needs=_STATED,
    )
    def patches_left_out_change_nothing(self) -> str:
        """Tokens of the patches that `keep` names follow from these alone, in any order, and behind
        `lengths` there are none."""
        network, images, layout = self._with_tokens()
        if not layout.drops:
            raise SkipTest("it cannot leave patches out")
        patches = _patches(layout, images)
        some = max(patches // 2, 2)
        if patches < some + 1:
            raise UntriedError(f"its images have {patches} patches, too few to leave some out")
        order = _orders(len(images), patches)
        keep, back = order[:, :some], torch.arange(some).flip(0)
        other = _with_other_pixels(images, layout, hidden_patches(keep, patches))
        short = torch.full((len(images),), some - 1)
        with frozen(network):
            whole = network.tokens(images)
            every = network.tokens(images, keep=order)
            found, blind = (network.tokens(x, keep=keep) for x in (images, other))
            turned = network.tokens(images, keep=keep[:, back])
            cut = network.tokens(images, keep=keep, lengths=short)
            fewer = network.tokens(images, keep=keep[:, :-1])
        far = distance(every.patches, gather_patches(whole.patches, order))
        refuse(not far <= CLOSE, f"with all patches kept, tokens are {far:.2g} from those of none")
        for text, one, another in (
            ("with other pixels where patches are left out", blind, found),
            ("in another order", _in_order(turned, back), found),
            ("with one behind lengths", _first(cut, some - 1), fewer),
        ):
            far = max(distance(one.patches, another.patches), _apart(one.prefix, another.prefix))
            refuse(not far <= CLOSE, f"{text}, tokens are {far:.2g} away")
        refuse(bool(cut.patches[:, some - 1 :].any()), "behind lengths there are no zeros")
        return f"{some} of {patches} patches"

    @law(
        "put mask_token in place of the embeddings of masked patches, before patches are mixed",
        needs=_STATED,
    )
    def masked_patches_do_not_show(self) -> None:
        """The pixels of masked patches change no token, and `mask_token` does."""
        network, images, layout = self._with_tokens()
        patches = _patches(layout, images)
        masked = torch.zeros(len(images), patches, dtype=torch.bool)
        masked.scatter_(1, _orders(len(images), patches)[:, : max(patches // 2, 1)], True)
        other = _with_other_pixels(images, layout, masked)
        token = torch.linspace(-1.0, 1.0, layout.width)
        with frozen(network):
            found, blind = (
                network.tokens(x, masked=masked, mask_token=token) for x in (images, other)
            )
            another = network.tokens(images, masked=masked, mask_token=-token)
        far = max(distance(found.patches, blind.patches), _apart(found.prefix, blind.prefix))
        refuse(not far <= CLOSE, f"with other pixels in masked patches, tokens are {far:.2g} away")
        same = distance(found.patches, another.patches) <= CLOSE
        refuse(same, "with another mask_token, tokens are the same")

    def _with_tokens(self) -> tuple[Backbone, Tensor, TokenLayout]:
        network = self.used()
        if network.token_layout is None:
            raise SkipTest("it has no tokens of patches")
        return network, self.samples(3), network.token_layout


def _patches(layout: TokenLayout, images: Tensor) -> int:
    rows, columns = layout.grid(*images.shape[-2:])
    return rows * columns


def _orders(count: int, patches: int) -> Tensor:
    """(count, patches): a fixed order for each image."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(patches, generator=generator) for _ in range(count)])


def _with_other_pixels(images: Tensor, layout: TokenLayout, where: Tensor) -> Tensor:
    """Images with the pixels of some patches turned round; where: (B, N) bool."""
    pixels = patchify(images, layout.patch_size)
    changed = torch.where(where[..., None], 1.0 - pixels, pixels)
    return unpatchify(changed, layout.patch_size, layout.grid(*images.shape[-2:]))


def _in_order(tokens: Tokens, order: Tensor) -> Tokens:
    return Tokens(tokens.prefix, tokens.patches[:, order])


def _first(tokens: Tokens, count: int) -> Tokens:
    return Tokens(tokens.prefix, tokens.patches[:, :count])


def _apart(one: Tensor, other: Tensor) -> float:
    """Their distance; 0 where there are none."""
    return distance(one, other) if one.numel() else 0.0


def _refuse_other_shapes(found: Any, layout: TokenLayout, images: int, patches: int) -> None:
    """Raises LawBrokenError where tokens are not as they are stated."""
    if not isinstance(found, Tokens):
        raise LawBrokenError(f"tokens gave {describe(found)}")
    for name, given, count in (
        ("prefix", found.prefix, layout.prefix),
        ("patches", found.patches, patches),
    ):
        valid = (images, count, layout.width)
        refuse(
            tuple(given.shape) != valid,
            f"{name} is {tuple(given.shape)}, and token_layout states {valid}",
        )
        refuse(not bool(given.isfinite().all()), f"{name} has values that are not finite")
