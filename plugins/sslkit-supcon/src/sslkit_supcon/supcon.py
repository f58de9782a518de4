"""SupCon: views of images of one class are embedded alike."""

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
    slot,
)


class SupCon(Method):
    """Encoder and projection head on all views in one pass, and one contrastive loss that knows
    the classes: every embedding of the anchor's class is a positive.

    The defaults are the reference code's. It needs labels; an image without one, label -1, takes
    part as in NT-Xent. Source: Khosla et al. 2020, arXiv 2004.11362.
    """

    requires_labels = True

    class Config(ComponentConfig):
        head: Slot[Head] = slot(
            "mlp",
            hidden_norm="none",
            hidden_bias=True,
            out_dim=128,
            output_norm="none",
            output_bias=True,
        )
        """Projection head; the hidden layer has the width of the backbone."""
        loss: Slot[Loss] = slot("supcon")
        """Loss on the projections of all views, and the labels."""
        loss_weight: PositiveFloat = 1.0
        """Multiplies the loss."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        sizes = [view.size for view in facts.views]
        if len(sizes) < 2:
            yield "", f"supcon contrasts views, but the augmentation makes {len(sizes)}: use 2"
        if len(set(sizes)) > 1:
            yield "", f"supcon needs views of one size, but the augmentation makes {sizes} px"
        if facts.batch_size < 2:
            yield "", "supcon needs train.batch_size >= 2: the other images are its negatives"
        views = max(len(sizes), 2)  # of fewer it is told above
        for reason in missing_parts(config.loss, ("labels", "random"), num_views=views):
            yield "loss", reason

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if facts.classes_present == 1 and facts.num_labelled == facts.num_images:
            yield (
                "",
                "all images are of one class, so that nothing is a negative and training will "
                "collapse; use data with several classes, or the method simclr",
            )
        without = facts.num_images - facts.num_labelled
        if facts.num_classes is not None and without > 0:
            yield (
                "",
                f"{without} of {facts.num_images} images have no label; each is a class of its own",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        """Positives and negatives of an anchor, on average, where sizes of classes are known."""
        if not facts.class_sizes or facts.num_images < 2 or len(facts.views) < 2:
            return {}
        views, others = len(facts.views), facts.batch_size - 1
        pairs = sum(size * (size - 1) for size in facts.class_sizes)
        share = pairs / (facts.num_images * (facts.num_images - 1))
        return {
            "positives per anchor": round(views - 1 + views * others * share, 1),
            "negatives per anchor": round(views * others * (1.0 - share), 1),
        }

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = config.head.build(in_dim=backbone.num_features)
        self.loss = config.loss.build()

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.head.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, V, F) and z (B, V, D)."""
        features = self.backbone(torch.cat(batch.views))
        by_view = {"features": features, "z": self.head(features)}
        count = len(batch.views)
        return {name: torch.stack(x.chunk(count), dim=1) for name, x in by_view.items()}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        views = embeddings["z"].unbind(dim=1)
        given = LossInput(views, batch.labels, random=batch.random, progress=progress)
        return StepOutput(self.config.loss_weight * self.loss(given), losses=[(self.loss, given)])
