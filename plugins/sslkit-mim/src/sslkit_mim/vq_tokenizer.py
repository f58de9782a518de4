"""VQ-VAE: train a codebook, whose codes are the words that BEiT predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Method,
    Progress,
    RunFacts,
    ScheduledNumber,
    StepOutput,
    scheduled,
)
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred

from .code_use import code_shares, perplexity
from .vq_autoencoder import VQAutoencoder

_BLOCK_ELEMENTS = 1 << 22
"""Elements of a matrix of latents and codes that is held at once."""
Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


class _Seen(NamedTuple):
    """What a step leaves for the codebook."""

    latents: Tensor
    """(M, D), all of the batch."""
    codes: Tensor
    """(M,) int64, the nearest code of each."""
    order: Tensor
    """(M,) int64, random; the same for an image in any batch."""


class VQTokenizer(Method):
    """An autoencoder between whose halves each latent is replaced by the nearest of K codes.

    The loss is the squared error of the reconstruction, mean over the normalised pixels, and
    `commitment` times that between latents and their codes, which pulls latents to codes. The
    gradient passes the replacement as if it were not there. Codes take no gradient: after each
    step each moves to the moving average of the latents that chose it. Codes that hardly any
    latent chooses start anew from latents of the batch. What is exported is the whole autoencoder,
    with its codebook. Source: van den Oord et al. 2017, arXiv 1711.00937.
    """

    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({"usage": "prototypes"})
    """The codebook collapses when few codes are chosen: images are then words of a few letters."""

    class Config(ComponentConfig):
        commitment: NonNegativeFloat = 0.25
        """Weight of the distance between latents and their codes."""
        momentum: Momentum = scheduled(0.99)
        """Momentum of the moving averages that the codes are."""
        revive_below: float = Field(default=0.03, ge=0.0, lt=1.0)
        """Codes start anew when they are used less than this part of the mean use. 0: never."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"vq_tokenizer needs 1 view, but the augmentation makes {len(facts.views)}"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if min(config.momentum.values(facts)) == 1.0:
            yield "momentum", "1 throughout: no code ever moves; set less than 1, such as 0.99"

    config: Config
    backbone: VQAutoencoder
    counts: Tensor
    """(K,): how many latents of a step chose each code, a moving average."""
    sums: Tensor
    """(K, D): the sum of these latents, in the same way."""

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        if not isinstance(backbone, VQAutoencoder):
            raise RecipeError(
                "backbone: vq_tokenizer trains an autoencoder with a codebook; set "
                "backbone: {name: vq_autoencoder}"
            )
        (view,) = facts.views
        if any(side % backbone.stride for side in view.sides):
            raise RecipeError(
                f"backbone.stride: squares of {backbone.stride} px do not fill a view of "
                f"{max(view.sides)} px; choose a divisor, or another augmentation.size"
            )
        backbone.requires_grad_()
        self.register_buffer("counts", torch.zeros(backbone.num_codes))
        self.register_buffer("sums", torch.zeros_like(backbone.codebook))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F); latents (B, N, D), without gradient, of the N squares; usage (B, K), the
        part of the squares that each code has; loss (B,) and error (B,), that of the pixels."""
        (images,) = batch.views
        hidden = self.backbone.hidden(images)
        latents = self.backbone.latents(hidden)
        codes = self.backbone.nearest(latents)
        chosen = self.backbone.codebook[codes]
        through = latents + (chosen - latents).detach()
        apart = self.backbone.reconstruct(through) - self.backbone.normalized(images)
        error = apart.square().mean((1, 2, 3))
        committed = (latents - chosen).square().mean((1, 2, 3))
        return {
            "features": hidden.mean((2, 3)),
            "latents": latents.detach().flatten(1, 2),
            "usage": code_shares(codes.flatten(1), self.backbone.num_codes).to(error.dtype),
            "loss": error + self.config.commitment * committed,
            "error": error.detach(),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        latents = embeddings["latents"]
        words = batch.random.bits("revive", latents.shape[1])
        seen = _Seen(
            latents.flatten(0, 1),
            self.backbone.nearest(latents).flatten(),
            words.flatten().argsort(stable=True),
        )

        def metrics() -> dict[str, Tensor]:
            return {
                "pixel_error": embeddings["error"].mean(),
                "code_perplexity": perplexity(embeddings["usage"]),
            }

        return StepOutput(embeddings["loss"].mean(), Deferred(metrics), carry=seen)

    @torch.no_grad()
    def after_step(self, progress: Progress, carry: Any) -> None:
        seen: _Seen = carry
        momentum = self.config.momentum.at(progress.previous())
        counts, sums = _gathered(seen, len(self.counts))
        self.counts.lerp_(counts.to(self.counts), 1.0 - momentum)
        self.sums.lerp_(sums.to(self.sums), 1.0 - momentum)
        self._revive(seen)
        used = self.counts > 0.0
        means = self.sums / torch.where(used, self.counts, 1.0)[:, None]
        self.backbone.codebook.copy_(torch.where(used[:, None], means, self.backbone.codebook))

    def _revive(self, seen: _Seen) -> None:
        """Gives codes that are hardly used a latent of the batch each, in a random order, and the
        least use: those that nobody chooses start anew again. Codes start unused, so that the
        first step makes nearly all of them."""
        least = self.config.revive_below * self.counts.mean()
        dead = self.counts < least
        places = seen.order[(dead.cumsum(0) - 1) % len(seen.order)]
        fresh = seen.latents[places].to(self.sums)
        self.counts.copy_(torch.where(dead, least, self.counts))
        self.sums.copy_(torch.where(dead[:, None], fresh * least, self.sums))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, S, S) in [0, 1]: as they are, and made from their codes alone."""
        (images,) = batch.views
        made = self.backbone.images_of(self.backbone.codes_of(images))
        return {"image": images, "reconstruction": made.to(images.dtype)}


def _gathered(seen: _Seen, codes: int) -> tuple[Tensor, Tensor]:
    """(K,) latents that chose each code, and (K, D) their sums. As products of matrices, which have
    the same bits every time on a GPU, unlike scattered additions."""
    counts = seen.latents.new_zeros(codes)
    sums = seen.latents.new_zeros(codes, seen.latents.shape[1])
    rows = max(1, _BLOCK_ELEMENTS // codes)
    parts = torch.split(seen.latents, rows), torch.split(seen.codes, rows)
    for latents, chosen in zip(*parts, strict=True):
        member = F.one_hot(chosen, codes).to(latents.dtype)
        counts += member.sum(0)
        sums += member.T @ latents
    return counts, sums
