"""data2vec: predict what a momentum teacher makes of the whole image, where patches are masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Method,
    Progress,
    RunFacts,
    ScheduledNumber,
    StepOutput,
    scheduled,
)
from sslkit.errors import RecipeError
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.numerics import full_precision

from .block_masks import BlockMasks
from .pixels import grid_of, layout_of

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


class Data2Vec(Method):
    """A student sees an image with blocks of patches masked and predicts, at these patches, the
    mean of what the last blocks of a teacher give, which sees the whole image.

    Each output of the teacher is normalised by token before the mean, and the mean again, without
    scale and shift; without that, equal targets would be a solution. The loss is smooth L1, mean
    over masked patches and dimensions. The teacher is a moving average of the student's backbone,
    without drop path, and moves after each optimiser step. It starts as a copy.
    Source: Baevski et al. 2022, arXiv 2202.03555.
    """

    trains_class_token: ClassVar[bool] = False
    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({"target": "spread"})

    class Config(ComponentConfig):
        mask_ratio: float = Field(default=0.612, gt=0.0, lt=1.0)
        """Part of the patches that is masked, in blocks: 120 of 196."""
        min_block: PositiveInt = 16
        """Least area that is drawn for a block, patches; 16 is for 196 of them."""
        layers: PositiveInt = 6
        """Blocks of the teacher, from the last, whose outputs are averaged."""
        beta: PositiveFloat = 2.0
        """Where smooth L1 turns from the squared to the absolute error."""
        teacher_momentum: Momentum = scheduled(0.9998)
        """Momentum of the teacher; for 800 epochs of ImageNet."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"data2vec needs 1 view, but the augmentation makes {len(facts.views)}"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        layout = layout_of(backbone, "data2vec")
        self.masks = BlockMasks(grid_of(layout, facts), config.mask_ratio, config.min_block)
        if config.layers > layout.blocks:
            raise RecipeError(
                f"method.layers: the backbone has {layout.blocks} blocks, not {config.layers}"
            )
        self.mask_token = nn.Parameter(torch.empty(1, 1, layout.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predict = nn.Linear(layout.width, layout.width)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)
        self.teacher = EMATeacher(backbone, dropout=False)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F), of the masked images; target (B, D), the mean over patches; loss (B,),
        of each image."""
        (images,) = batch.views
        masked = self.masks.draw(batch.random)
        tokens = self.backbone.tokens(images, masked=masked, mask_token=self.mask_token[0, 0])
        target = self.targets(images)
        made = full_precision(self.predict(tokens.patches))
        apart = F.smooth_l1_loss(made, target, beta=self.config.beta, reduction="none")
        return {
            "features": self.backbone.pool_tokens(tokens),
            "target": target.mean(1),
            "loss": (apart.mean(2) * masked).sum(1) / self.masks.count,
        }

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """(B, N, D), in float32 at least: of each patch normalised, on whole images."""
        teacher: Any = self.teacher.module
        found = teacher.tokens(images, blocks=range(-self.config.layers, 0)).blocks
        normed = [_normed(full_precision(tokens.patches)) for tokens in found]
        return _normed(torch.stack(normed).mean(0))

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        # All images have as many masked patches: the mean over images is that over patches.
        return StepOutput(embeddings["loss"].mean())

    def after_step(self, progress: Progress, carry: Any) -> None:
        momentum = self.config.teacher_momentum.at(progress.previous())
        self.teacher.update(self.backbone, momentum)


def _normed(tokens: Tensor) -> Tensor:
    """By token, without scale and shift."""
    return F.layer_norm(tokens, tokens.shape[-1:])
