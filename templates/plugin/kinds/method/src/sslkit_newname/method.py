"""Predict what a momentum teacher makes of another view of the image.

Shapes: B images, V views of each, F features, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import torch
from sslkit.api import (
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Head,
    Method,
    Progress,
    RunFacts,
    ScheduledNumber,
    Slot,
    StepOutput,
    scheduled,
    slot,
)
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.functional import feature_std, normalize
from torch import Tensor, nn


def disagreement(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 - cos(prediction, target), the mean over images and over pairs of different views: 0 to 2.

    predictions, targets: (B, V, D). A prediction is held against the targets of the other views.
    """
    cosines = normalize(predictions) @ normalize(targets).mT  # (B, V, V)
    others = ~torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
    return 1.0 - cosines[:, others].mean()


class NewName(Method):
    """Backbone, projector and predictor predict the projections of a teacher, which follows them.

    The teacher is a moving average of backbone and projector. It moves after each step and takes no
    gradient.
    """

    must_not_collapse = MappingProxyType({"targets": "spread"})
    """Not "predictions": a predictor begins by predicting the mean."""

    class Config(ComponentConfig):
        projector: Slot[Head] = slot("mlp", hidden_dim=256, out_dim=64, output_norm="bn_no_affine")
        """Maps features to the projection, online and in the teacher."""
        predictor: Slot[Head] = slot("mlp", hidden_dim=128, out_dim=64, output_norm="none")
        """Maps a projection to the prediction; `out_dim` must be the projector's."""
        teacher_momentum: Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)] = scheduled(0.99)
        """Part of the teacher that stays in a step: a number, or a schedule."""

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) < 2:
            yield "", f"needs 2 views or more, and the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "needs train.batch_size >= 2: its heads use batch statistics"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        self.predictor = config.predictor.build(in_dim=self.projector.out_dim)
        if self.predictor.out_dim != self.projector.out_dim:
            raise RecipeError(
                f"method.predictor.out_dim: got {self.predictor.out_dim}; valid is that of the "
                f"projector, {self.projector.out_dim}"
            )
        self.teacher = EMATeacher(self.taught)

    @property
    def taught(self) -> nn.Module:
        """What the teacher follows."""
        return nn.Sequential(self.backbone, self.projector)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, V, F), predictions and targets (B, V, D)."""
        features = [self.backbone(view) for view in batch.views]
        named = {
            "features": features,
            "predictions": [self.predictor(self.projector(each)) for each in features],
            "targets": [self.teacher(view) for view in batch.views],
        }
        return {name: torch.stack(views, dim=1) for name, views in named.items()}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        predictions, targets = embeddings["predictions"], embeddings["targets"].detach()
        loss = disagreement(predictions, targets)
        metrics = Deferred(lambda: {"target_std": feature_std(targets[:, 0])})
        return StepOutput(loss, metrics)

    def after_step(self, progress: Progress, carry: Any) -> None:
        momentum = self.config.teacher_momentum.at(progress.previous())
        self.teacher.update(self.taught, momentum)
