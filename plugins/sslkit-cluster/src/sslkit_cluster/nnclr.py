"""NNCLR: the positive of a view is the nearest neighbour of the other in a queue of past ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
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
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.functional import DEFAULT_CHUNK_ELEMENTS, normalize
from sslkit.nn.queue import FeatureQueue


class NNCLR(Method):
    """A prediction from one view finds, among those of the batch, the support nearest to the
    other view's projection. Supports are a queue of past projections of the first view.

    The loss is the mean over both directions. Supports are looked up before those of the batch
    enter, after the optimiser step, so that no image is its own neighbour; they carry no gradient.
    Every view is a forward pass of its own. The queue starts full of random unit vectors.
    Source: Dwibedi et al. 2021, arXiv 2104.14548.
    """

    class Config(ComponentConfig):
        projector: Slot[Head] = slot(
            "mlp", num_layers=3, hidden_dim=2048, out_dim=256, output_norm="bn"
        )
        """Maps features to the projection, whose neighbour is looked up."""
        predictor: Slot[Head] = slot(
            "mlp", hidden_dim=4096, out_dim=256, output_norm="none", output_bias=True
        )
        """Maps a projection to the prediction; `out_dim` must be the projector's."""
        loss: Slot[Loss] = slot("info_nce", temperature=0.1, symmetric=False)
        """Loss between neighbours (first view) and predictions (second view) of the batch."""
        queue_size: PositiveInt = 98304
        """Supports in the queue; any number. 4096 suffices for CIFAR."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 2:
            yield "", f"nnclr needs 2 views, but the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "nnclr needs train.batch_size >= 2: the other images are its negatives"
        for reason in missing_parts(config.loss, num_views=2):
            yield "loss", reason

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if config.queue_size < facts.batch_size:
            yield (
                "queue_size",
                f"{config.queue_size} supports are fewer than the {facts.batch_size} of a step, so "
                "that neighbours come from a part of the step before; set a multiple of them",
            )
        if config.queue_size >= facts.num_images:
            yield (
                "queue_size",
                f"{config.queue_size} supports are those of an epoch ({facts.num_images}) or more, "
                "so that the neighbour of an image can be the image itself: set less, such as "
                f"{facts.num_images // 8 or 1}",
            )
        if rewards_collapse(config.loss.build()):
            yield (
                "loss",
                f"{config.loss.name} is lowest when all embeddings are equal, and nothing else "
                "keeps images apart; use a loss with negatives, such as info_nce",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"supports": config.queue_size}

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        self.predictor = config.predictor.build(in_dim=self.projector.out_dim)
        if self.predictor.out_dim != self.projector.out_dim:
            raise RecipeError(
                f"method.predictor: its output has width {self.predictor.out_dim} and that of the "
                f"projector, which makes the supports, {self.projector.out_dim}; set both out_dim "
                "alike"
            )
        self.loss = config.loss.build()
        self.supports = FeatureQueue(config.queue_size, self.projector.out_dim)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, 2, F), projection and prediction (B, 2, D): entry v belongs to view v."""
        features = [self.backbone(view) for view in batch.views]
        projections = [self.projector(feature) for feature in features]
        named = {
            "features": features,
            "projection": projections,
            "prediction": [self.predictor(projection) for projection in projections],
        }
        return {name: torch.stack(views, dim=1) for name, views in named.items()}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        prediction = embeddings["prediction"]
        projection = normalize(embeddings["projection"].detach())
        supports = self.supports.features
        chosen = [nearest(rows, supports) for rows in projection.unbind(dim=1)]
        # The neighbour of one view, and the prediction from the other.
        pairs = [(supports[chosen[view]], prediction[:, 1 - view]) for view in (0, 1)]
        given = [LossInput(pair, batch.labels, progress=progress) for pair in pairs]

        def metrics() -> dict[str, Tensor]:
            neighbours = supports[chosen[0]].to(projection)
            used = projection.new_zeros(len(supports)).index_fill_(0, chosen[0], 1.0)
            return {
                "neighbour_similarity": (projection[:, 0] * neighbours).sum(dim=1).mean(),
                "distinct_neighbours": used.sum() / len(projection),
            }

        return StepOutput(
            torch.stack([self.loss(each) for each in given]).mean(),
            metrics=Deferred(metrics),
            losses=[(self.loss, each) for each in given],
            carry=projection[:, 0],
        )

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.supports.push(carry)


@torch.no_grad()
def nearest(rows: Tensor, supports: Tensor, chunk_elements: int = DEFAULT_CHUNK_ELEMENTS) -> Tensor:
    """(B,) int64: for each row the position of the support of the highest cosine.

    rows (B, D) and supports (N, D), of unit length; `chunk_elements` similarities are held at a
    time. Of equal ones the first is taken."""
    columns = supports.to(rows).T
    strips = torch.split(rows, max(1, chunk_elements // len(supports)))
    return torch.cat([(strip @ columns).argmax(dim=1) for strip in strips])
