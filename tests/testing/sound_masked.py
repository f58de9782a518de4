"""Sound methods that hide parts of images or turn them, on one view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sound_methods import WIDTH
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Apart, Backbone, Batch, Method, Progress, RunFacts, StepOutput

PATCH, SIDE = 4, 4
"""Of test_vit on views of 16 pixels: 16 patches."""


def patches_of(images: Tensor) -> Tensor:
    """(B, P, pixels)."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def tokens_of(backbone: Any, images: Tensor) -> Tensor:
    """Class token and patches with their positions, (B, 1 + P, D)."""
    vit = backbone.model
    tokens: Tensor = vit._pos_embed(vit.patch_embed(backbone.normalized(images)))
    return tokens


def through_blocks(backbone: Any, tokens: Tensor) -> Tensor:
    for block in backbone.model.blocks:
        tokens = block(tokens)
    normed: Tensor = backbone.model.norm(tokens)
    return normed


def rows(tokens: Tensor, chosen: Tensor) -> Tensor:
    """tokens (B, N, D), chosen (B, n) -> (B, n, D)."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))


class MAE(Method):
    """He et al. 2022: three quarters of the patches are hidden, by sample; only the others pass
    through the encoder; pixels are normalised by patch."""

    must_not_collapse: Mapping[str, Apart] | None = {"features": "spread"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        width = backbone.num_features
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, SIDE * SIDE + 1, WIDTH))
        self.narrow = nn.Linear(width, WIDTH)
        self.decoder = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.pixels = nn.Linear(WIDTH, 3 * PATCH * PATCH)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (images,) = batch.views
        order = batch.random.permutation("mask", SIDE * SIDE)
        visible, hidden = order[:, : SIDE * SIDE // 4], order[:, SIDE * SIDE // 4 :]
        tokens = tokens_of(self.backbone, images)
        seen = torch.cat([tokens[:, :1], rows(tokens[:, 1:], visible)], 1)
        seen = through_blocks(self.backbone, seen)
        narrow = self.narrow(seen)
        filled = self.mask_token.to(narrow).expand(len(images), SIDE * SIDE, -1)
        places = visible[..., None].expand(-1, -1, WIDTH)
        filled = torch.cat([narrow[:, :1], filled.scatter(1, places, narrow[:, 1:])], 1)
        made = self.pixels(self.decoder(filled + self.positions)[:, 1:])
        return {
            "features": seen[:, 0],
            "made": rows(made, hidden),
            "wanted": rows(patches_of(images), hidden),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        wanted = embeddings["wanted"]
        mean, var = wanted.mean(-1, keepdim=True), wanted.var(-1, keepdim=True)
        return StepOutput(F.mse_loss(embeddings["made"], (wanted - mean) / (var + 1e-6).sqrt()))


class RotNet(Method):
    """Gidaris et al. 2018: which of four ways the image was turned, drawn by sample."""

    must_not_collapse: Mapping[str, Apart] | None = {"features": "spread"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = nn.Linear(backbone.num_features, 4)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        turns = batch.random.integers("turn", 1, 4)[:, 0]
        turned = torch.stack([torch.rot90(batch.views[0], k, (2, 3)) for k in range(4)], 1)
        features = self.backbone(turned[torch.arange(len(turns)), turns])
        return {"features": features, "scores": self.head(features), "turns": turns}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        scores, turns = embeddings["scores"], embeddings["turns"]
        correct = (scores.argmax(1) == turns).float().mean()
        return StepOutput(F.cross_entropy(scores, turns), {"pretext_top1": correct})


class Flipped(RotNet):
    """The same of an augmentation that says what it did: target "flip"."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = self.backbone(batch.views[0])
        return {"features": features, "scores": self.head(features)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        return StepOutput(F.cross_entropy(embeddings["scores"], batch.targets["flip"].long()))


MASKED: tuple[type[Method], ...] = (MAE, RotNet)
"""Those of one view and a vision transformer."""
