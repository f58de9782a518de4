"""DINOv2's loss: iBOT with balanced targets, heads of their own, and images spread apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import (
    Batch,
    Head,
    ParamGroup,
    Progress,
    RunFacts,
    Slot,
    StepOutput,
    scheduled,
    slot,
)
from sslkit.nn.deferred import Deferred
from sslkit.nn.layer_groups import decayed_scales
from sslkit.nn.prototypes import sinkhorn

from .dino import Momentum
from .feature_losses import koleo
from .ibot import IBOT


class DINOv2(IBOT):
    """`ibot` whose targets use all prototypes alike (Sinkhorn-Knopp), with a head of its own for
    patches, and with KoLeo, which keeps the class tokens of the student's global views apart.

    Targets are balanced over the batch, those of global views together and those of masked patches
    together. KoLeo is added for each global view, over the images of the batch. The learning rate
    falls from the last block to the first, and once more for the patch embedding.
    Source: Oquab et al. 2023, arXiv 2304.07193.
    """

    must_not_collapse = MappingProxyType({"target": "prototypes", "patch_target": "prototypes"})
    """What the teacher's scores say before they are balanced, which alone would hide a collapse."""

    class Config(IBOT.Config):
        head: Slot[Head] = slot("dino", unit_prototypes=False)
        """Maps features to scores of prototypes. Its last layer (`Head.as_layers`) stands still at
        first."""
        patch_head: Slot[Head] | None = slot("dino", unit_prototypes=False)
        """Maps patches to scores of prototypes of their own; null: `head` does."""
        centering: Literal["sinkhorn", "mean"] = "sinkhorn"
        """How the teacher is kept from giving all images one prototype: `sinkhorn` balances what it
        gives the batch; `mean` takes moving averages of its scores away, as in `ibot`."""
        sinkhorn_iterations: PositiveInt = 3
        """Iterations that even out the use of the prototypes. Without effect unless `centering` is
        `sinkhorn`, as are both momenta of centres where it is."""
        koleo_weight: NonNegativeFloat = 0.1
        """Weight of KoLeo of each global view."""
        teacher_momentum: Momentum = scheduled("cosine", start=0.992, end=1.0)
        """Momentum of the teacher."""
        min_block: PositiveInt = 4
        """Least area that is drawn for a block, patches."""
        layer_decay: float = Field(default=0.9, gt=0.0, le=1.0)
        """Factor of the learning rate from each block to the one before it; the heads have 1."""
        patch_embed_lr_scale: PositiveFloat = 0.2
        """Further factor of the learning rate of the patch embedding."""
        max_grad_norm: PositiveFloat | None = None
        """Clips the gradient of each tensor of weights on its own; null: not at all. The reference
        code clips whole networks: `train.max_grad_norm`."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from super().problems(config, facts)
        if config.koleo_weight and facts.batch_size < 2:
            yield "koleo_weight", "KoLeo needs train.batch_size >= 2: it spreads images apart"

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        for path, text in super().warnings(config, facts):
            if config.centering == "mean" or not path.endswith("center_momentum"):
                yield path, text

    config: Config

    def param_groups(self) -> list[ParamGroup]:
        """Groups by depth, the patch embedding apart; the mask token goes with the first."""
        clip = self.config.max_grad_norm
        layers = self.backbone.depth_groups()
        scales = decayed_scales(len(layers), self.config.layer_decay)
        groups = []
        for layer, scale in zip(layers, scales, strict=True):
            named = [(f"backbone.{name}", p) for name, p in layer if p.requires_grad]
            embed = [pair for pair in named if "patch_embed" in pair[0]]
            others = [pair for pair in named if "patch_embed" not in pair[0]]
            groups.append(ParamGroup(others, scale, max_grad_norm=clip))
            scale *= self.config.patch_embed_lr_scale
            groups.append(ParamGroup(embed, scale, max_grad_norm=clip))
        token = [("mask_token", self.mask_token)]
        groups.append(ParamGroup(token, scales[0], max_grad_norm=clip))
        rest = [
            (name, p)
            for name, p in self.named_parameters()
            if p.requires_grad and not name.startswith("backbone.") and name != "mask_token"
        ]
        groups.append(ParamGroup(rest, max_grad_norm=clip))
        return [group for group in groups if group.params]

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        found = super().objective(embeddings, batch, progress)
        if not self.config.koleo_weight:
            return found
        views = embeddings["student_features"].unbind(dim=1)
        spread = torch.stack([koleo(self.world.gather(view)) for view in views]).sum()
        metrics = found.metrics
        value = spread.detach() / len(views)
        return replace(
            found,
            loss=found.loss + self.config.koleo_weight * spread,
            metrics=Deferred(lambda: {**metrics, "koleo": value}),
        )

    def _class_target(self, embeddings: Mapping[str, Tensor], progress: Progress) -> Tensor:
        if self.config.centering == "mean":
            return super()._class_target(embeddings, progress)
        scores = embeddings["teacher"]
        rows = scores.flatten(0, 1)
        return self._balanced(rows, self.config.teacher_temperature.at(progress)).view_as(scores)

    def _patch_target(self, scores: Tensor, progress: Progress) -> Tensor:
        if self.config.centering == "mean":
            return super()._patch_target(scores, progress)
        return self._balanced(scores, self.config.patch_teacher_temperature.at(progress))

    def _balanced(self, scores: Tensor, temperature: float) -> Tensor:
        """(n, K) of the rows of all processes."""
        iterations = self.config.sinkhorn_iterations
        return sinkhorn(scores, temperature, iterations, gather=self.world.gather)

    def _means(self, teacher: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.centering == "mean":
            return super()._means(teacher, patches)
        return self.center, self.patch_center  # they stay at 0
