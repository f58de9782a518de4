"""MoCo v3: contrast predictions with the keys of a large batch; no queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

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
    rewards_collapse,
    scheduled,
    slot,
)
from sslkit.errors import RecipeError
from sslkit.nn.ema import EMATeacher, odd_momentum

from . import vit

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


class MoCoV3(Method):
    """Queries, which pass a predictor, find the key of the same image among the keys of the batch;
    keys come from a momentum teacher of encoder and projector.

    The loss is the sum over both directions, each 2 * temperature times the cross entropy of
    queries against keys. Every view is a forward pass of its own, of the query network and of the
    teacher, which keeps its own batch statistics. The teacher moves before each step towards the
    query network as the previous step left it. The defaults are those of the ResNet-50 for 100 and
    300 epochs; a ViT has a third projector layer, `output_norm: bn_no_affine` in the predictor and
    temperature 0.2. Source: Chen et al. 2021, arXiv 2104.02057.
    """

    class Config(ComponentConfig):
        projector: Slot[Head] = slot(
            "mlp", num_layers=2, hidden_dim=4096, out_dim=256, output_norm="bn_no_affine"
        )
        """Maps features to the embedding, in the query network and in the teacher."""
        predictor: Slot[Head] = slot("mlp", hidden_dim=4096, out_dim=256, output_norm="none")
        """Maps an embedding to the query; `out_dim` must be the projector's."""
        loss: Slot[Loss] = slot("info_nce", temperature=1.0, symmetric=False)
        """Loss between queries (first view) and the keys of the batch (second view)."""
        temperature_scaling: bool = True
        """Multiplies the loss by twice its `temperature`."""
        loss_weight: PositiveFloat = 1.0
        """Multiplies the loss."""
        teacher_momentum: Momentum = scheduled("cosine", start=0.99, end=1.0)
        """Momentum of the teacher. The paper: from 0.99, from 0.996 for 1000 epochs; a plain number
        is constant."""
        freeze_patch_embedding: bool = False
        """ViTs only: leaves the patch embedding as it starts, which steadies training."""
        vit_init: bool = False
        """ViTs only: starts from MoCo v3's initialisation, with fixed sine-cosine position
        embeddings. Must be false where the backbone starts from weights."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        loss, views = config.loss, len(facts.views)
        if views != 2:
            yield "", f"moco_v3 needs 2 views, but the augmentation makes {views}"
        if facts.batch_size < 2:
            yield "", "moco_v3 needs train.batch_size >= 2: the other images are its negatives"
        for reason in missing_parts(loss, num_views=2):
            yield "loss", reason
        if getattr(loss.config, "symmetric", False):
            yield (
                "loss.symmetric",
                "true would also contrast keys with queries; moco_v3 sums both directions of the "
                "views by itself: set it to false",
            )
        if config.temperature_scaling and _temperature(config) is None:
            yield "temperature_scaling", f"{loss.name} has no temperature: set it to false"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said
        if rewards_collapse(config.loss.build()):
            yield (
                "loss",
                f"{config.loss.name} is lowest when all embeddings are equal: without negatives "
                "this is BYOL, where predictor and teacher alone prevent a collapse; use info_nce, "
                "or the method byol",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"negatives per anchor": facts.batch_size - 1}

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        if config.vit_init:
            vit.initialize(backbone)
        if config.freeze_patch_embedding:
            vit.freeze_patch_embedding(backbone)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        self.predictor = config.predictor.build(in_dim=self.projector.out_dim)
        if self.predictor.out_dim != self.projector.out_dim:
            raise RecipeError(
                f"method.predictor: its output has width {self.predictor.out_dim} and that of the "
                f"projector, which makes the keys, {self.projector.out_dim}; set both out_dim alike"
            )
        self.loss = config.loss.build()
        self.teacher = EMATeacher(self.taught)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    @property
    def taught(self) -> nn.Module:
        """The part of the query network that the teacher follows."""
        return nn.Sequential(self.backbone, self.projector)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self.taught, self.config.teacher_momentum.at(progress))

    def _scale(self, progress: Progress) -> float:
        """What the sum of both directions is multiplied by."""
        temperature = _temperature(self.config) if self.config.temperature_scaling else None
        factor = 1.0 if temperature is None else 2.0 * temperature.at(progress)
        return self.config.loss_weight * factor

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, 2, F), query and key (B, 2, D): entry v belongs to view v."""
        features = [self.backbone(view) for view in batch.views]
        named = {
            "features": features,
            "query": [self.predictor(self.projector(feature)) for feature in features],
            "key": [self.teacher(view) for view in batch.views],
        }
        return {name: torch.stack(views, dim=1) for name, views in named.items()}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        query, key = embeddings["query"], embeddings["key"].detach()

        # The queries of one view and, as their keys, those of the other.
        given = [
            LossInput((query[:, view], key[:, 1 - view]), batch.labels, progress=progress)
            for view in (0, 1)
        ]
        directions = [self.loss(each) for each in given]
        return StepOutput(
            self._scale(progress) * torch.stack(directions).sum(),
            losses=[(self.loss, each) for each in given],
        )


def _temperature(config: MoCoV3.Config) -> ScheduledNumber | None:
    """The temperature of the loss, where it has one."""
    found = getattr(config.loss.config, "temperature", None)
    if isinstance(found, float):
        return ScheduledNumber(found)
    return found if isinstance(found, ScheduledNumber) else None
