"""RotNet: say by which quarter turn an image is rotated."""

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
    Method,
    Progress,
    RunFacts,
    Slot,
    StepOutput,
    slot,
)

from .classification_task import classified, one_square_image, refuse_other_width

NUM_ROTATIONS = 4


def rotations(images: Tensor) -> Tensor:
    """(B, C, S, S) to (B, 4, C, S, S): each image rotated by 0, 90, 180 and 270 degrees,
    counter-clockwise. Pixels are moved and never mixed."""
    return torch.stack([images.rot90(turns, (2, 3)) for turns in range(NUM_ROTATIONS)], dim=1)


class RotNet(Method):
    """The four rotations of every image pass the backbone together, and a classifier says which
    rotation each is: cross entropy, ln 4 = 1.386 at chance.

    The rotations are made of the view, after everything that the augmentation does. So a flip comes
    before them, as it must: mirrored after its rotation, an image turned by 90 degrees is one
    turned by 270, and a quarter of the answers would be luck. They cost no reading, and no crop.
    Source: Gidaris et al. 2018, arXiv 1803.07728.
    """

    must_not_collapse = MappingProxyType({"features": "spread"})
    """And not "logits": they are to be the same for all images of one rotation."""

    class Config(ComponentConfig):
        head: Slot[Head] = slot(
            "mlp", num_layers=1, out_dim=NUM_ROTATIONS, output_norm="none", output_bias=True
        )
        """Maps the features of an image to four logits: `out_dim` must be 4."""

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        return one_square_image("rotnet", facts)

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"rotations per step": NUM_ROTATIONS * facts.batch_size}

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = config.head.build(in_dim=backbone.num_features)
        refuse_other_width("head", self.head, NUM_ROTATIONS)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.head.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F), of the images as they stand; logits (B, 4, 4): entry r of those of an
        image belongs to its rotation by 90 r degrees."""
        features = self.backbone(rotations(batch.views[0]).flatten(0, 1))
        named = {"features": features, "logits": self.head(features)}
        by_image = {name: value.unflatten(0, (-1, NUM_ROTATIONS)) for name, value in named.items()}
        return {**by_image, "features": by_image["features"][:, 0]}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        logits = embeddings["logits"]
        turns = torch.arange(NUM_ROTATIONS, device=logits.device).expand(len(logits), -1)
        return classified(logits.flatten(0, 1), turns.flatten())
