"""Sound methods that hide parts of images or turn them, on one view."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from sound_methods import WIDTH
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Apart, Backbone, Batch, Method, Progress, RunFacts, StepOutput
from sslkit.nn.ema import EMATeacher

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


class Data2Vec(Method):
    """Baevski et al. 2022: the mean of the teacher's last blocks, where patches are hidden."""

    must_not_collapse: Mapping[str, Apart] | None = {"target": "spread"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.num_features))
        self.predict = nn.Linear(backbone.num_features, backbone.num_features)
        self.teacher = EMATeacher(backbone)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        teacher: Any = self.teacher.module
        tokens, outputs = tokens_of(teacher, images), []
        for block in teacher.model.blocks:
            tokens = block(tokens)
            outputs.append(F.layer_norm(tokens[:, 1:], tokens.shape[-1:]))
        mean = torch.stack(outputs[-3:]).mean(0)
        return F.layer_norm(mean, mean.shape[-1:])

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (images,) = batch.views
        hidden = batch.random.permutation("mask", SIDE * SIDE)[:, :10]
        tokens = tokens_of(self.backbone, images)
        where = torch.zeros(len(images), 1 + SIDE * SIDE, 1, dtype=torch.bool, device=images.device)
        where.scatter_(1, 1 + hidden[..., None], True)
        made = through_blocks(self.backbone, torch.where(where, self.mask_token.to(tokens), tokens))
        return {
            "features": made[:, 0],
            "made": rows(self.predict(made[:, 1:]), hidden),
            "target": rows(self.targets(images), hidden),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        return StepOutput(F.smooth_l1_loss(embeddings["made"], embeddings["target"], beta=2.0))

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.teacher.update(self.backbone, 0.99)


class IJEPA(Data2Vec):
    """Assran et al. 2023: a predictor fills a block of the teacher's output from a context, which
    others are kept out of by attention, so that every image has its own shape of block."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        width = backbone.num_features
        self.places = nn.Parameter(0.02 * torch.randn(1, SIDE * SIDE, width))
        self.predictor = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)

    def block(self, batch: Batch) -> Tensor:
        """(B, P) bool: a rectangle of 1 to 3 by 1 to 3 patches, of the image's own."""
        sides = 1 + batch.random.integers("sides", 2, 3)
        corner = (batch.random.uniform("corner", 2) * (SIDE - sides + 1)).long()
        at = torch.arange(SIDE, device=sides.device)
        inside = [
            (at >= corner[:, d, None]) & (at < (corner + sides)[:, d, None]) for d in range(2)
        ]
        return (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (images,) = batch.views
        hidden = self.block(batch)
        tokens = tokens_of(self.backbone, images)
        tokens = tokens * F.pad(~hidden, (1, 0), value=True)[..., None]
        context = through_blocks(self.backbone, tokens)
        asked = torch.where(hidden[..., None], self.mask_token.to(tokens), context[:, 1:])
        made = self.predict(self.predictor(asked + self.places))
        with torch.no_grad():
            target = through_blocks(self.teacher.module, tokens_of(self.teacher.module, images))
            target = F.layer_norm(target[:, 1:], target.shape[-1:])
        return {"features": context[:, 0], "made": made, "target": target, "hidden": hidden}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        hidden = embeddings["hidden"]
        made, target = embeddings["made"][hidden], embeddings["target"][hidden]
        return StepOutput(F.smooth_l1_loss(made, target))


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


class Denoising(Method):
    """Vincent et al. 2008: the image from a noisy one, with dropout in the decoder."""

    must_not_collapse: Mapping[str, Apart] | None = {"features": "spread"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.decoder = nn.Sequential(
            nn.Linear(backbone.num_features, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 64)
        )
        self.start = copy.deepcopy(self.decoder[3].weight.detach())

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (images,) = batch.views
        noise = batch.random.uniform("noise", images[0].numel(), -0.3, 0.3).view_as(images)
        features = self.backbone(images + noise.to(images))
        wanted = F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1)
        return {"features": features, "made": self.decoder(features), "wanted": wanted}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        return StepOutput(F.mse_loss(embeddings["made"], embeddings["wanted"]))


MASKED: tuple[type[Method], ...] = (MAE, Data2Vec, IJEPA, RotNet, Denoising)
"""Those of one view and a vision transformer."""
