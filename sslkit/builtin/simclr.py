"""SimCLR: a contrastive loss between augmented views of the same image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Head,
    Loss,
    LossInput,
    Method,
    Progress,
    RunFacts,
    Slot,
    StepOutput,
    missing_parts,
    rewards_collapse,
    slot,
)

_FEW_IMAGES = 8
"""With fewer the task is close to a guess between two images."""


class SimCLR(Method):
    """Encoder and projection head on every view, one contrastive loss on the projections.

    The default is the reference code's pass, but not its scale of the loss: see `loss_weight`. With
    more than two views the built-in losses average over all pairs.
    Source: Chen et al. 2020, arXiv 2002.05709; v2: arXiv 2006.10029 (`head.num_layers: 3`).
    """

    class Config(ComponentConfig):
        head: Slot[Head] = slot("mlp")
        """Projection head."""
        loss: Slot[Loss] = slot("nt_xent")
        """Loss on the projections of all views."""
        loss_weight: PositiveFloat = 1.0
        """Multiplies the loss: 1 is the paper's mean over all embeddings, 2 the sum of both
        directions, as in the reference code."""
        passes: Literal["joint", "per_view"] = "joint"
        """`joint`: all views go through the networks in one pass, and BatchNorm has statistics of
        all of them (the reference code); `per_view`: a pass and statistics for each (lightly)."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        sizes = [view.size for view in facts.views]
        if len(sizes) < 2:
            yield "", f"simclr contrasts views, but the augmentation makes {len(sizes)}: use 2"
        if len(set(sizes)) > 1 and config.passes == "joint":
            yield (
                "passes",
                f"a joint pass needs views of one size, but the augmentation makes {sizes} px: "
                "set per_view",
            )
        if facts.batch_size < 2:
            yield "", "simclr needs train.batch_size >= 2: the other images are its negatives"
        views = max(len(sizes), 2)  # of fewer it is told above
        for reason in missing_parts(config.loss, ("labels", "random"), num_views=views):
            yield "loss", reason

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if rewards_collapse(config.loss.build()):
            yield (
                "loss",
                f"{config.loss.name} is lowest when all embeddings are equal, and simclr has no "
                "teacher or predictor to prevent it: training will collapse; use a loss with "
                "negatives, such as nt_xent",
            )
        if facts.batch_size < _FEW_IMAGES:
            yield (
                "",
                f"in a batch of {facts.batch_size} an image is told apart from "
                f"{facts.batch_size - 1} other{'' if facts.batch_size == 2 else 's'}, which is too "
                "few to learn from; raise train.batch_size",
            )

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = config.head.build(in_dim=backbone.num_features)
        self.loss = config.loss.build()

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.head.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features: (B, V, F) and z: (B, V, D), one row per image."""
        if self.config.passes == "per_view":
            features = torch.stack([self.backbone(view) for view in batch.views], dim=1)
            z = torch.stack([self.head(rows) for rows in features.unbind(dim=1)], dim=1)
            return {"features": features, "z": z}
        features = self.backbone(torch.cat(batch.views))
        z = self.head(features)
        num_views = len(batch.views)
        return {
            "features": features.unflatten(0, (num_views, -1)).transpose(0, 1),
            "z": z.unflatten(0, (num_views, -1)).transpose(0, 1),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        views = embeddings["z"].unbind(dim=1)
        given = LossInput(views, batch.labels, random=batch.random, progress=progress)
        return StepOutput(self.config.loss_weight * self.loss(given), losses=[(self.loss, given)])
