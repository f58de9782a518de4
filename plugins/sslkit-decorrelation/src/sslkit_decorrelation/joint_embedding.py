"""What the methods of this package share: every view is embedded alike, and a loss on all
embeddings keeps those of different images apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
)


class JointEmbedding(Method):
    """Backbone and projector on every view, one loss on the projections of all of them.

    Every view is a forward pass of its own, so batch statistics are those of one view. There is no
    teacher, predictor or stop-gradient: the loss alone keeps the projections from collapsing. With
    more than two views the losses of this package average over all pairs.
    """

    class Config(ComponentConfig):
        projector: Slot[Head]
        """Maps features to the projection that the loss sees."""
        loss: Slot[Loss]
        """Loss on the projections of all views."""
        loss_weight: PositiveFloat = 1.0
        """Multiplies the loss."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) < 2:
            yield "", f"compares views of an image, and the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "needs train.batch_size >= 2: its loss is made of statistics of the batch"
        views = max(len(facts.views), 2)  # of fewer it is told above
        for reason in missing_parts(config.loss, ("labels", "random"), num_views=views):
            yield "loss", reason

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if rewards_collapse(config.loss.build()):
            yield (
                "loss",
                f"{config.loss.name} is lowest when all embeddings are equal, and nothing else in "
                "this method keeps them apart: training will collapse; use another loss",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"negatives per anchor": 0}

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        self.loss = config.loss.build()

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, V, F) and z (B, V, D)."""
        features = [self.backbone(view) for view in batch.views]
        z = [self.projector(each) for each in features]
        return {"features": torch.stack(features, dim=1), "z": torch.stack(z, dim=1)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        views = embeddings["z"].unbind(dim=1)
        given = LossInput(views, batch.labels, random=batch.random, progress=progress)
        return StepOutput(self.config.loss_weight * self.loss(given), losses=[(self.loss, given)])
