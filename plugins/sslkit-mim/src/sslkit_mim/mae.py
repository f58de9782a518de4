"""MAE: fill in the pixels of hidden patches from the visible ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from pydantic import Field
from torch import Tensor

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    Progress,
    RunFacts,
    StepOutput,
)
from sslkit.errors import RecipeError
from sslkit.nn.masking import split_patches
from sslkit.nn.numerics import full_precision
from sslkit.nn.patches import gather_patches, hidden_patches

from .decoder import Decoder, DecoderConfig, decoded
from .pixels import Pixels, patch_statistics
from .vit_init import initialize


class MAE(Method):
    """A vision transformer sees a quarter of the patches of an image, and a small decoder fills in
    the pixels of the others.

    The loss is the squared error, mean over the pixels of the hidden patches, which are drawn by
    image and step. With `norm_pix` each patch is normalised by its own mean and deviation; always
    guessing 0 then costs (n - 1) / n for n values in a patch, 0.9987 for 16 x 16 pixels. Hidden
    patches do not pass through the encoder, which costs about a quarter of the time. What is
    evaluated is the encoder with all patches. Source: He et al. 2022, arXiv 2111.06377.
    """

    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({})
    """Nothing: each image is its own target, and tokens of a healthy encoder lie close together."""

    class Config(ComponentConfig):
        mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0)
        """Part of the patches that is hidden."""
        norm_pix: bool = True
        """Whether the pixels of a patch are normalised by its own mean and deviation: off in the
        paper's ablations, on for its final results."""
        decoder: DecoderConfig = DecoderConfig()
        """The decoder, which is thrown away after training."""
        vit_init: bool = True
        """Starts the encoder as MAE does, with fixed sine-cosine position embeddings. Must be false
        where the backbone starts from weights."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"mae needs 1 view, but the augmentation makes {len(facts.views)}"

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.pixels = Pixels(backbone, "mae", facts)
        if not self.pixels.layout.drops:
            raise RecipeError(
                "backbone: mae leaves patches out, which relative positions do not allow; choose a "
                "vit_... of timm, or the method simmim"
            )
        self.visible = int(self.pixels.count * (1.0 - config.mask_ratio))
        if not 0 < self.visible < self.pixels.count:
            raise RecipeError(
                f"method.mask_ratio: {config.mask_ratio:g} leaves {self.visible} of "
                f"{self.pixels.count} patches visible; some must be, and some hidden"
            )
        if config.norm_pix and self.pixels.values < 2:
            raise RecipeError(
                "method.norm_pix: a patch has 1 value, whose deviation is not defined; set it to "
                "false, or make patches larger"
            )
        if config.vit_init:
            initialize(backbone)
        width, grid = self.pixels.layout.width, self.pixels.grid
        self.decoder = Decoder(config.decoder, width, grid, self.pixels.values)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F), of the visible patches; loss (B,), of each image."""
        (images,) = batch.views
        visible, hidden = self._split(batch)
        tokens = self.backbone.tokens(images, keep=visible)
        made = full_precision(gather_patches(decoded(self.decoder, tokens, visible), hidden))
        target = gather_patches(self.pixels.of(images), hidden)
        if self.config.norm_pix:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        return {
            "features": self.backbone.pool_tokens(tokens),
            "loss": (made - target).square().mean((1, 2)),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        # All images have as many hidden patches: the mean over images is that over patches.
        return StepOutput(embeddings["loss"].mean())

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, S, S) in [0, 1]: as they are, what the encoder sees of them, and with their
        hidden patches filled in."""
        (images,) = batch.views
        visible, _ = self._split(batch)
        made = decoded(self.decoder, self.backbone.tokens(images, keep=visible), visible)
        if self.config.norm_pix:
            mean, deviation = patch_statistics(self.pixels.of(images))
            made = made * deviation + mean
        return self.pixels.pictures(images, made, hidden_patches(visible, self.pixels.count))

    def _split(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Numbers of the visible and of the hidden patches, (B, n) and (B, N - n)."""
        return split_patches(batch.random, self.pixels.count, self.visible)
