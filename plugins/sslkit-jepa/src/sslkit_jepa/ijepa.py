"""I-JEPA: predict a teacher's features of hidden blocks from the rest of the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    FractionRange,
    Method,
    PositiveRange,
    Progress,
    RunFacts,
    ScheduledNumber,
    StepOutput,
    TokenLayout,
    Tokens,
    scheduled,
)
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.numerics import full_precision
from sslkit.nn.patches import gather_patches

from .multiblock import MultiBlock
from .predictor import Predictor, PredictorConfig
from .start import initialize

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


class IJEPA(Method):
    """A vision transformer sees a large block of patches without four small ones; a predictor makes
    of it, for each of the four, what a teacher that sees the whole image makes of their patches.

    The loss is smooth L1 between prediction and the teacher's tokens, which are normalised one by
    one; it is the mean over all patches that are predicted. Always predicting 0 costs 0.42466 where
    targets are normal. The teacher is a moving average of the encoder, and it is what is evaluated
    and exported. Images show different numbers of patches; no image sees less for what others of
    its batch show. Source: Assran et al. 2023, arXiv 2301.08243.
    """

    trains_class_token: ClassVar[bool] = False
    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({"target": "spread"})

    class Config(ComponentConfig):
        targets: PositiveInt = 4
        """Blocks that are predicted."""
        target_scale: FractionRange = (0.15, 0.2)
        """Area of a target block, as a part of the image, from and to."""
        target_aspect: PositiveRange = (0.75, 1.5)
        """Height of a target block as a multiple of its width, from and to."""
        context_scale: FractionRange = (0.85, 1.0)
        """Area of the block that is shown, before the targets are taken out of it."""
        least_context: PositiveInt = 10
        """Patches that are shown at least: the last targets are left in where fewer would be."""
        most_context: float = Field(default=0.6, gt=0.0, le=1.0)
        """Patches that are shown at most, as a part of the image; of more, some are chosen at
        random. The encoder costs as if all images showed so many."""
        beta: PositiveFloat = 1.0
        """Error at which the loss turns from a square into a straight line."""
        predictor: PredictorConfig = PredictorConfig()
        """The predictor, which is thrown away after training."""
        teacher_momentum: Momentum = scheduled("linear", start=0.996, end=1.0)
        """Momentum of the teacher."""
        vit_init: bool = True
        """Starts the encoder as the code does, with fixed sine-cosine position embeddings. Must be
        false where the backbone starts from weights."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"ijepa needs 1 view, but the augmentation makes {len(facts.views)}"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        layout = _layout(backbone)
        self.patch_size = layout.patch_size
        self.regions = _regions(config, layout, facts)
        rows, columns = self.regions.grid
        self.middle = rows // 2 * columns + columns // 2
        if config.vit_init:
            initialize(backbone)
        self.predictor = Predictor(config.predictor, layout.width, self.regions.grid)
        self.teacher = EMATeacher(backbone, dropout=False)

    @property
    def encoder(self) -> Backbone:
        """The teacher's network."""
        network: Backbone = self.teacher.module  # type: ignore[assignment]
        return network

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F) of the whole image and target (B, D), the normalised token of the patch
        in its middle, both of the teacher; error (B,), summed over the patches of all blocks, and
        patches (B,), how many these are."""
        (images,) = batch.views
        regions = self.regions.draw(batch.random)
        shown = self.backbone.tokens(
            images, keep=regions.context, lengths=regions.context_lengths
        ).patches
        made = full_precision(self.predictor(shown, regions))
        tokens, whole = self.targets(images)
        target = gather_patches(whole, regions.targets.flatten(1)).view_as(made)
        places = torch.arange(made.shape[2], device=made.device)
        counts = (places < regions.target_lengths[:, None]).to(made.dtype)  # (B, k)
        errors = F.smooth_l1_loss(made, target, reduction="none", beta=self.config.beta).mean(-1)
        return {
            "features": self.encoder.pool_tokens(tokens),
            "target": whole[:, self.middle],
            "error": (errors * counts[:, None]).sum((1, 2)),
            "patches": counts.sum(1) * made.shape[1],
        }

    @torch.no_grad()
    def targets(self, images: Tensor) -> tuple[Tokens, Tensor]:
        """The teacher's tokens of whole images; and those of patches, (B, N, D), in float32 at
        least and normalised one by one, without scale and shift."""
        tokens = self.encoder.tokens(images)
        patches = full_precision(tokens.patches)
        return tokens, F.layer_norm(patches, patches.shape[-1:])

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        patches, target = embeddings["patches"].detach(), embeddings["target"].detach()
        loss = embeddings["error"].sum() / patches.sum()
        return StepOutput(loss, Deferred(lambda: {"target_variance": _variance(target)}))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, S, S) in [0, 1]: as they are, what is shown of them, and each block that is
        asked for; the rest is grey."""
        (images,) = batch.views
        found = self.regions.draw(batch.random)
        parts = {
            "image": images,
            "context": self._part(images, found.context, found.context_lengths),
        }
        for number, block in enumerate(found.targets.unbind(1), start=1):
            parts[f"target {number}"] = self._part(images, block, found.target_lengths)
        return parts

    def _part(self, images: Tensor, patches: Tensor, lengths: Tensor) -> Tensor:
        seen = self.regions.covered(patches, lengths)[:, None]
        for axis, side in zip((2, 3), self.patch_size, strict=True):
            seen = seen.repeat_interleave(side, axis)
        return torch.where(seen, images, 0.5)

    def after_step(self, progress: Progress, carry: Any) -> None:
        momentum = self.config.teacher_momentum.at(progress.previous())
        self.teacher.update(self.backbone, momentum)


def _variance(target: Tensor) -> Tensor:
    """Between images, mean over dimensions: of (B, D), at most 1 where tokens are normalised."""
    return target.var(0, correction=0).mean()


def _layout(backbone: Backbone) -> TokenLayout:
    """Raises RecipeError where the tokens of a backbone do not suit."""
    layout = backbone.token_layout
    if layout is None or not layout.drops:
        raise RecipeError(
            "backbone: ijepa leaves patches out, and this one does not allow it; choose a vision "
            "transformer with absolute positions, such as {name: timm, model: "
            "vit_small_patch16_224, pool: avg}"
        )
    return layout


def _regions(config: IJEPA.Config, layout: TokenLayout, facts: RunFacts) -> MultiBlock:
    """Raises RecipeError where the view has too few patches."""
    (view,) = facts.views
    sides, patch = view.sides, layout.patch_size
    if sides[0] % patch[0] or sides[1] % patch[1]:
        raise RecipeError(
            f"backbone.patch_size: patches of {patch[0]} x {patch[1]} px do not fill a view of "
            f"{view}; choose a divisor, or another augmentation.size"
        )
    rows, columns = layout.grid(*sides)
    most = int(rows * columns * config.most_context)
    if most < config.least_context:
        raise RecipeError(
            f"method.least_context: {config.least_context} patches, but most_context allows {most} "
            f"of {rows * columns}; lower it, or make patches smaller"
        )
    regions = MultiBlock(
        (rows, columns),
        config.targets,
        config.target_scale,
        config.target_aspect,
        config.context_scale,
        config.least_context,
        most,
    )
    if regions.smallest_context < config.least_context:
        raise RecipeError(
            f"method.least_context: {config.least_context} patches, but the block that is shown "
            f"can have {regions.smallest_context}; lower it, or raise context_scale"
        )
    return regions
