"""LeJEPA: views are pulled to the mean of the global ones, and a regulariser spreads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sslkit.api import Backbone, Batch, Head, Loss, Progress, RunFacts, Slot, StepOutput, slot

from .joint_embedding import JointEmbedding

Part = Annotated[float, Field(ge=0.0, le=1.0)]


class LeJEPA(JointEmbedding):
    """Every view, global or local, predicts the mean of the global views of its image, and the
    projections of each view are normally distributed over the batch.

    Views of one size pass the networks together, with the batch statistics of all of them; the
    entry "features" has the global views alone. There is no teacher and no stop-gradient: the mean
    of the global views is trained, too.
    Source: Balestriero and LeCun 2025, arXiv 2511.08544.
    """

    class Config(JointEmbedding.Config):
        projector: Slot[Head] = slot(
            "mlp",
            num_layers=3,
            hidden_dim=2048,
            out_dim=64,
            hidden_bias=True,
            output_norm="none",
            output_bias=True,
        )
        """Maps features to the projection that the loss sees."""
        loss: Slot[Loss] = slot("sigreg")
        """The regulariser, on the projections of all views."""
        loss_weight: Part = 0.05
        """Weight of the regulariser, lambda of the paper; the distance of the views from the mean
        of the global ones has 1 - loss_weight."""

    @classmethod
    def problems(cls, config: JointEmbedding.Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from super().problems(config, facts)
        roles = [view.role for view in facts.views]
        if roles and "global" not in roles:
            yield (
                "",
                "needs a view of role global, to whose mean all views are pulled; the views are "
                f"{', '.join(roles)}",
            )

    @classmethod
    def warnings(cls, config: JointEmbedding.Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from super().warnings(config, facts)
        if config.loss_weight == 0.0:
            usual = cls.Config.model_fields["loss_weight"].default
            yield (
                "loss_weight",
                f"0 leaves nothing that keeps images apart: training will collapse; set {usual:g}",
            )

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.globals = [place for place, view in enumerate(facts.views) if view.role == "global"]

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, G, F) of the G global views, and z (B, V, D) of all."""
        places: dict[torch.Size, list[int]] = {}
        for place, view in enumerate(batch.views):
            places.setdefault(view.shape, []).append(place)
        features: dict[int, Tensor] = {}
        z: dict[int, Tensor] = {}
        for alike in places.values():
            rows = self.backbone(torch.cat([batch.views[place] for place in alike]))
            features |= zip(alike, rows.chunk(len(alike)), strict=True)
            z |= zip(alike, self.projector(rows).chunk(len(alike)), strict=True)
        seen = torch.stack([features[place] for place in self.globals], dim=1)
        return {"features": seen, "z": torch.stack([z[p] for p in range(len(z))], dim=1)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"]
        centre = z[:, self.globals].mean(dim=1, keepdim=True)
        invariance = (z - centre).square().mean()
        output = super().objective(embeddings, batch, progress)
        loss = output.loss + (1.0 - self.config.loss_weight) * invariance
        return replace(output, loss=loss, metrics={"invariance": invariance.detach()})
