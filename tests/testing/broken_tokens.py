"""Transformers with one fault each in their tokens, and a sound one that they differ from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Backbone, ComponentConfig, Preprocess, TokenLayout, Tokens
from sslkit.nn.patches import gather_patches

WIDTH = 16


class SoundTokens(Backbone):
    """A class token and patches of 4 px through two blocks: nothing is wrong with it."""

    Config = ComponentConfig

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.embed = nn.Conv2d(channels, WIDTH, 4, stride=4)
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, (image_size // 4) ** 2, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.num_features = WIDTH
        self.preprocess = Preprocess(image_size, image_size, "bilinear", (0.5,), (0.5,))
        self.token_layout = TokenLayout((4, 4), WIDTH, 1, True, 2, drops=True, normed=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool_tokens(self.tokens(images))

    def pool_tokens(self, tokens: Tokens) -> Tensor:
        return tokens.prefix[:, 0] + tokens.patches.mean(1)

    def embedded(self, images: Tensor, masked: Tensor | None, mask_token: Tensor | None) -> Tensor:
        patches = self.embed((images - 0.5) / 0.5).flatten(2).transpose(1, 2)
        if masked is not None and mask_token is not None:
            patches = torch.where(masked[..., None], mask_token.to(patches.dtype), patches)
        return patches + self.positions

    def tokens(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        lengths: Tensor | None = None,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        blocks: Any = (),
    ) -> Tokens:
        patches = self.embedded(images, masked, mask_token)
        unseen = None
        if keep is not None:
            patches = gather_patches(patches, keep)
            if lengths is not None:
                places = torch.arange(-1, keep.shape[1], device=keep.device)
                unseen = places >= lengths[:, None]
        x = torch.cat([self.start.expand(len(patches), -1, -1), patches], 1)
        outputs = []
        for block in self.blocks:
            x = block(x, src_key_padding_mask=unseen)
            outputs.append(x)
        if unseen is not None:
            outputs = [x.masked_fill(unseen[..., None], 0.0) for x in outputs]
        found = [Tokens(x[:, :1], x[:, 1:]) for x in outputs]
        return found[-1]._replace(blocks=tuple(found[number] for number in blocks))


class OtherPooling(SoundTokens):
    """`forward` leaves out the class token, and `pool_tokens` does not."""

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images).patches.mean(1) + 0.0 * self.start.sum()


class StatesOneMore(SoundTokens):
    """States a token before the patches that there is not."""

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config, channels=channels, image_size=image_size)
        self.token_layout = TokenLayout((4, 4), WIDTH, 2, True, 2, drops=True, normed=False)


class Silent(SoundTokens):
    """Has tokens, and no layout."""

    def __init__(self, config: Any, *, channels: int, image_size: int) -> None:
        super().__init__(config, channels=channels, image_size=image_size)
        self.token_layout = None


class LeavesOutTooLate(SoundTokens):
    """Computes all patches and hands out those kept."""

    def tokens(self, images: Tensor, *, keep: Any = None, lengths: Any = None, **asked: Any) -> Any:
        found = super().tokens(images, **asked)
        if keep is None:
            return found
        patches = gather_patches(found.patches, keep)
        if lengths is not None:
            places = torch.arange(keep.shape[1])
            patches = torch.where((places < lengths[:, None])[..., None], patches, 0.0)
        return found._replace(patches=patches)


class ForgetsLengths(SoundTokens):
    """Attends to what stands behind the length of a row."""

    def tokens(self, images: Tensor, *, lengths: Any = None, **asked: Any) -> Any:
        found = super().tokens(images, **asked)
        if lengths is None:
            return found
        seen = torch.arange(found.patches.shape[1]) < lengths[:, None]
        return found._replace(patches=torch.where(seen[..., None], found.patches, 0.0))


class PositionsByOrder(SoundTokens):
    """Gives a kept patch the position of its place in `keep`."""

    def tokens(self, images: Tensor, *, keep: Any = None, **asked: Any) -> Any:
        if keep is None:
            return super().tokens(images, **asked)
        rows = gather_patches(self.positions.expand(len(keep), -1, -1), keep)
        wrong = nn.functional.pad(self.positions[:, : keep.shape[1]] - rows, (0, 0, 1, 0))
        handle = self.blocks[0].register_forward_pre_hook(lambda _, given: (given[0] + wrong,))
        try:
            return super().tokens(images, keep=keep, **asked)
        finally:
            handle.remove()


class MasksTooLate(SoundTokens):
    """Mixes the mean of all patches into each before some are masked."""

    def embedded(self, images: Tensor, masked: Any, mask_token: Any) -> Tensor:
        found = super().embedded(images, masked, mask_token)
        if masked is None:
            return found
        return found + super().embedded(images, None, None).mean(1, keepdim=True)


class MasksWithZero(SoundTokens):
    """Does not take the mask token that it is given."""

    def embedded(self, images: Tensor, masked: Any, mask_token: Any) -> Tensor:
        zero = None if mask_token is None else torch.zeros_like(mask_token)
        return super().embedded(images, masked, zero)


BROKEN_TOKENS: dict[type[Backbone], str] = {
    OtherPooling: "tokens-are-as-stated",
    StatesOneMore: "tokens-are-as-stated",
    Silent: "tokens-are-as-stated",
    LeavesOutTooLate: "patches-left-out-change-nothing",
    ForgetsLengths: "patches-left-out-change-nothing",
    PositionsByOrder: "patches-left-out-change-nothing",
    MasksTooLate: "masked-patches-do-not-show",
    MasksWithZero: "masked-patches-do-not-show",
}
"""Class -> the one law that it breaks."""
