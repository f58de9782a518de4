"""BYOL: predict what a momentum teacher makes of the other view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Head,
    Loss,
    LossInput,
    Method,
    Progress,
    RunFacts,
    ScheduledNumber,
    Slot,
    StepOutput,
    missing_parts,
    scheduled,
    slot,
)
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.functional import feature_std

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


class BYOL(Method):
    """An online network (encoder, projector, predictor) predicts the projection that a teacher
    makes of the other view; the teacher is a moving average of encoder and projector.

    The loss is the sum over both directions, 0 to 8 times `loss_weight` with `normalized_mse`, and
    about 4 for random embeddings. Every view is a forward pass of its own, of the online network
    and of the teacher, so batch statistics are those of one view; the teacher stays in training
    mode and gathers its own. It starts as a copy of the online network and moves after each
    optimiser step, towards the new weights. A low loss alone proves nothing: watch
    `train/target_std`, which falls to 0 when the embeddings collapse.
    Source: Grill et al. 2020, arXiv 2006.07733; the reference code draws the teacher's first
    weights independently.
    """

    must_not_collapse = MappingProxyType({"target": "spread"})
    """And not "prediction": the predictor begins by predicting the mean."""

    class Config(ComponentConfig):
        projector: Slot[Head] = slot(
            "mlp", hidden_dim=4096, out_dim=256, hidden_bias=True, output_norm="none"
        )
        """Maps features to the projection, online and in the teacher."""
        predictor: Slot[Head] = slot(
            "mlp", hidden_dim=4096, out_dim=256, hidden_bias=True, output_norm="none"
        )
        """Maps a projection to the prediction of the teacher's; `out_dim` must be the projector's.
        """
        loss: Slot[Loss] = slot("normalized_mse")
        """Loss between the prediction (first view) and the teacher's projection (second view)."""
        loss_weight: PositiveFloat = 1.0
        """Multiplies the loss: 1 is the paper's sum of both directions, 0.5 their mean, 0.25 the
        mean negative cosine of lightly (up to a constant)."""
        teacher_momentum: Momentum = scheduled("cosine", start=0.996, end=1.0)
        """Momentum of the teacher. The paper: from 0.996 for 1000 epochs, from 0.99 for 100 and
        300; a plain number is constant."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 2:
            yield "", f"byol needs 2 views, but the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "byol needs train.batch_size >= 2: its heads use batch statistics"
        for reason in missing_parts(config.loss, num_views=2):
            yield "loss", reason

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"negatives per anchor": 0}

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        self.predictor = config.predictor.build(in_dim=self.projector.out_dim)
        if self.predictor.out_dim != self.projector.out_dim:
            raise RecipeError(
                f"method.predictor: its output has width {self.predictor.out_dim} and that of the "
                f"projector, which it predicts, {self.projector.out_dim}; set both out_dim alike"
            )
        self.loss = config.loss.build()
        self.teacher = EMATeacher(self.taught)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    @property
    def taught(self) -> nn.Module:
        """The part of the online network that the teacher follows."""
        return nn.Sequential(self.backbone, self.projector)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, 2, F), prediction and target (B, 2, D): entry v belongs to view v."""
        features = [self.backbone(view) for view in batch.views]
        named = {
            "features": features,
            "prediction": [self.predictor(self.projector(feature)) for feature in features],
            "target": [self.teacher(view) for view in batch.views],
        }
        return {name: torch.stack(views, dim=1) for name, views in named.items()}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        prediction, target = embeddings["prediction"], embeddings["target"].detach()

        # The prediction from one view, and the target, which is the other view's.
        given = [
            LossInput((prediction[:, view], target[:, 1 - view]), batch.labels, progress=progress)
            for view in (0, 1)
        ]
        directions = [self.loss(each) for each in given]
        metrics = Deferred(lambda: {"target_std": feature_std(target[:, 0])})
        loss = self.config.loss_weight * torch.stack(directions).sum()
        return StepOutput(loss, metrics, losses=[(self.loss, each) for each in given])

    def after_step(self, progress: Progress, carry: Any) -> None:
        momentum = self.config.teacher_momentum.at(progress.previous())
        self.teacher.update(self.taught, momentum)
