"""A denoising autoencoder: say what an image was before it was damaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor

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
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.modes import modes_kept
from sslkit.nn.numerics import full_precision
from sslkit.randomness import SampleRandom


class DenoisingAutoencoder(Method):
    """The backbone sees a damaged view, and a decoder makes the undamaged one of its features: the
    mean squared error of all values, in units of the view (pixels are 0 to 1).

    The features are all that the decoder is given, so that they must hold what is on the image; the
    damage keeps them from being a mere copy of it. A baseline of reconstruction, trained as a
    whole. Source: Vincent et al. 2008, doi 10.1145/1390156.1390294, where layers of fully connected
    units are trained one after the other by a cross entropy.
    """

    must_not_collapse = MappingProxyType({"features": "spread"})

    class Config(ComponentConfig):
        noise: Literal["mask", "gaussian"] = "mask"
        """`mask`: values are set to 0, each by itself, with probability `noise_level`. `gaussian`:
        normal noise of this standard deviation is added to each."""
        noise_level: NonNegativeFloat = 0.25
        """How much is damaged; 0 is a plain autoencoder."""
        decoder: Slot[Head] = slot("conv_decoder", size=224)
        """Maps features to the values of the view: `out_dim` must be their number."""

        @model_validator(mode="after")
        def _leaves_something(self) -> Self:
            if self.noise == "mask" and self.noise_level >= 1.0:
                raise ValueError("noise_level: a mask must leave something to see: set it below 1")
            return self

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield (
                "",
                (
                    f"denoising needs 1 view, but the augmentation makes {len(facts.views)}: set "
                    "augmentation.num_views to 1"
                ),
            )

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.decoder = config.decoder.build(in_dim=backbone.num_features)
        shape = facts.views[0].shape(facts.channels)
        if self.decoder.out_dim != math.prod(shape):
            raise RecipeError(
                f"method.decoder: it makes {self.decoder.out_dim} values, and a view has "
                f"{math.prod(shape)} ({' x '.join(map(str, shape))}); set its size and channels, "
                "or its out_dim, to what a view has"
            )

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F) of the damaged view; what was made of them, and what it should be, each
        (B, values of a view)."""
        clean = batch.views[0]
        features = self.backbone(self._damaged(clean, batch.random))
        reconstruction = self.decoder(features)
        return {
            "features": features,
            "reconstruction": reconstruction,
            "clean": full_precision(clean.flatten(1)),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        clean = embeddings["clean"]
        loss = F.mse_loss(embeddings["reconstruction"], clean)
        error = loss.detach()

        def metrics() -> Mapping[str, Tensor]:
            spread = clean.var(dim=0, correction=0).mean()
            return {"explained_variance": torch.where(spread > 0.0, 1.0 - error / spread, 0.0)}

        return StepOutput(loss, Deferred(metrics))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """title -> images (B, C, S, S), for callbacks that show what methods make of images."""
        clean = batch.views[0]
        damaged = self._damaged(clean, batch.random)
        with modes_kept(self):
            self.eval()
            made = self.decoder(self.backbone(damaged)).view_as(clean)
        return {"image": clean, "seen": damaged, "reconstruction": made}

    def _damaged(self, clean: Tensor, random: SampleRandom) -> Tensor:
        level, values = self.config.noise_level, clean[0].numel()
        if self.config.noise == "mask":
            kept = random.uniform("noise", values) >= level
            return torch.where(kept.view_as(clean), clean, 0.0)
        return clean + level * _normal(random, values).view_as(clean).to(clean)


def _normal(random: SampleRandom, count: int) -> Tensor:
    """(B, count): independent normal numbers, two of each pair of uniform ones (Box and Muller
    1958). In float64 where there is that, whose rounding nobody sees: in float32 logarithms may
    differ with the place of a sample in the batch."""
    uniform = random.uniform("noise", 2 * ((count + 1) // 2))
    uniform = uniform if uniform.device.type == "mps" else uniform.double()
    first, second = uniform.chunk(2, dim=1)
    radius, angle = (-2.0 * (1.0 - first).log()).sqrt(), 2.0 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
