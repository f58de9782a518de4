"""SimSiam: predict what the same network makes of the other view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Head,
    Loss,
    LossInput,
    Method,
    ParamGroup,
    Progress,
    RunFacts,
    Slot,
    StepOutput,
    missing_parts,
    slot,
)
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.functional import feature_std


class SimSiam(Method):
    """A network (encoder, projector) and a predictor predict the projection that the same network
    makes of the other view, through which no gradient goes back.

    The loss is the mean of both directions, -1 to 1 with `negative_cosine`, and about 0 for random
    embeddings. Every view is a forward pass of its own, so batch statistics are those of one view.
    A low loss alone proves nothing: -1 at once is a collapse; watch `train/target_std`, which
    falls to 0 then. Source: Chen & He 2020, arXiv 2011.10566.
    """

    must_not_collapse = MappingProxyType({"target": "spread"})
    """And not "prediction": the predictor begins by predicting the mean."""

    class Config(ComponentConfig):
        projector: Slot[Head] = slot(
            "mlp", num_layers=3, hidden_dim=2048, out_dim=2048, output_norm="bn_no_affine"
        )
        """Maps features to the projection, which is also the target."""
        predictor: Slot[Head] = slot(
            "mlp", hidden_dim=512, out_dim=2048, output_norm="none", output_bias=True
        )
        """Maps a projection to the prediction of the other view's; `out_dim` must be the
        projector's."""
        loss: Slot[Loss] = slot("negative_cosine")
        """Loss between the prediction (first view) and the projection (second view)."""
        predictor_lr_constant: bool = True
        """Keeps the learning rate of the predictor at its peak, warm-up and decay aside."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 2:
            yield "", f"simsiam needs 2 views, but the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "simsiam needs train.batch_size >= 2: its heads use batch statistics"
        for reason in missing_parts(config.loss, num_views=2):
            yield "loss", reason

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

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    def param_groups(self) -> list[ParamGroup]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        own = {id(p) for p in self.predictor.parameters()}
        return [
            ParamGroup([pair for pair in named if id(pair[1]) not in own]),
            ParamGroup(
                [pair for pair in named if id(pair[1]) in own],
                lr_constant=self.config.predictor_lr_constant,
            ),
        ]

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, 2, F), prediction and target (B, 2, D): entry v belongs to view v."""
        features = [self.backbone(view) for view in batch.views]
        projections = [self.projector(feature) for feature in features]
        named = {
            "features": features,
            "prediction": [self.predictor(projection) for projection in projections],
            "target": [projection.detach() for projection in projections],
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
        loss = torch.stack([self.loss(each) for each in given]).mean()
        metrics = Deferred(lambda: {"target_std": feature_std(target[:, 0])})
        return StepOutput(loss, metrics, losses=[(self.loss, each) for each in given])
