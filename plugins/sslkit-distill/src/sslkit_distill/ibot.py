"""iBOT: DINO, and at masked patches the student predicts what the teacher finds in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self, cast

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    Bounds,
    Head,
    Progress,
    RunFacts,
    ScheduledNumber,
    Slot,
    StepOutput,
    TokenLayout,
    Tokens,
    scheduled,
    slot,
)
from sslkit.errors import RecipeError, TrainingError
from sslkit.nn.deferred import Deferred
from sslkit.nn.prototypes import cross_entropy_of_views

from .dino import DINO, Temperature, features_of
from .view_masks import MaskedPatches, ViewMasks, grid_of_patches

Probability = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class IBOT(DINO):
    """`dino`, whose student sees the global views with blocks of patches masked, and predicts at
    these patches the probabilities over prototypes that the teacher, which sees them, gives.

    The class tokens of all views have DINO's loss; those of the global ones are of masked images.
    The loss of patches is the mean cross entropy over the masked patches of a view, then over
    views and images; a view without any adds 0. Both start at ln K. Patches have a centre and a
    temperature of their own, and the head of class tokens unless `patch_head` says otherwise. Each
    global view of an image is masked or not, how much and where by keyed randomness.
    Source: Zhou et al. 2021, arXiv 2111.07832.
    """

    must_not_collapse = MappingProxyType({"target": "prototypes", "patch_target": "prototypes"})
    """What the teacher gives whole views, and the patch in the middle of each."""

    class Config(DINO.Config):
        head: Slot[Head] = slot("dino", out_dim=8192)
        """Maps features, and patches, to scores of prototypes. Its last layer (`Head.as_layers`)
        stands still at first."""
        patch_head: Slot[Head] | None = None
        """Maps patches to scores of prototypes of their own; null: `head` does."""
        patch_teacher_temperature: Temperature = scheduled(
            "linear", start=0.04, end=0.07, epochs=30.0
        )
        """Softmax temperature of the teacher for patches."""
        patch_center_momentum: float = Field(default=0.9, ge=0.0, le=1.0)
        """Momentum of the patches' centre, taken from the teacher's scores of masked ones."""
        mask_probability: Probability = scheduled(0.5)
        """Part of the global views that are masked."""
        mask_ratio: tuple[Fraction, Fraction] = (0.1, 0.5)
        """Least and greatest part of the patches of a masked view that are masked, uniform."""
        min_block: PositiveInt = 16
        """Least area that is drawn for a block, patches; 16 is for 196 of them."""
        class_weight: NonNegativeFloat = 1.0
        """Weight of the loss of class tokens."""
        patch_weight: NonNegativeFloat = 1.0
        """Weight of the loss of patches."""

        @model_validator(mode="after")
        def _rising(self) -> Self:
            low, high = self.mask_ratio
            if low > high:
                raise ValueError(f"mask_ratio: {low:g} is above {high:g}; the lower comes first")
            return self

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from super().problems(config, facts)
        sizes = {view.sides for view in facts.views if view.role == "global"}
        if len(sizes) > 1:
            yield "", f"{cls.__name__.lower()} needs global views of one size, not of {len(sizes)}"

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from super().warnings(config, facts)
        if config.patch_center_momentum == 1.0:
            yield (
                "patch_center_momentum",
                "1: the centre stays at 0, and nothing keeps the teacher from giving all patches "
                "one prototype; set less than 1, such as 0.9",
            )
        hottest = max(config.patch_teacher_temperature.values(facts))
        if hottest >= config.student_temperature:
            yield (
                "patch_teacher_temperature",
                f"{hottest:g} is not below student_temperature, {config.student_temperature:g}: "
                "the teacher does not sharpen, and its probabilities become uniform; set less, "
                "such as 0.07",
            )
        if config.class_weight == config.patch_weight == 0.0:
            yield (
                "class_weight",
                "0, and so is patch_weight: nothing is learnt from the teacher; set one to 1",
            )
        if max(config.mask_probability.values(facts)) == 0.0:
            yield "mask_probability", "0 throughout: no patch has a loss; set more, or use dino"

    config: Config
    patch_center: Tensor
    patch_temperature: Tensor
    mask_probability: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        grid = grid_of_patches(backbone, facts, type(self).__name__.lower())
        super().__init__(config, backbone, facts)
        self.masks = ViewMasks(grid, config.mask_ratio, config.min_block)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, _width(backbone)))
        self.register_buffer("patch_center", torch.zeros(self.patch_scorer.out_dim))
        start = Progress(0, facts.total_steps, facts.steps_per_epoch)
        for name, number in self._scheduled.items():
            self.register_buffer(name, torch.tensor(number.at(start)), persistent=False)

    def _build_heads(self, config: Any, backbone: Backbone) -> None:
        super()._build_heads(config, backbone)
        width = _width(backbone)
        self.patch_head: Head | None = None
        if config.patch_head is not None:
            self.patch_head = config.patch_head.build(in_dim=width)
        elif width != backbone.num_features:
            raise RecipeError(
                f"method.patch_head: features have width {backbone.num_features} and patches "
                f"{width}, so that no head can take both; set patch_head: {{name: dino}}"
            )

    @property
    def taught(self) -> nn.Module:
        parts: list[nn.Module] = [self.backbone, self.head]
        if self.patch_head is not None:
            parts.append(self.patch_head)
        return nn.Sequential(*parts)

    @property
    def patch_scorer(self) -> Head:
        """The student's head for patches."""
        return self.head if self.patch_head is None else self.patch_head

    @property
    def _scheduled(self) -> Mapping[str, ScheduledNumber]:
        """Buffer -> the schedule that it follows, beside `temperature`."""
        return {
            "patch_temperature": self.config.patch_teacher_temperature,
            "mask_probability": self.config.mask_probability,
        }

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        for name, number in self._scheduled.items():
            self.get_buffer(name).fill_(number.at(progress))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """As `DINO.embed`, and student_features (B, G, F) of the masked global views; of up to M
        masked patches of each the scores, student_patches and teacher_patches (B, G, M, K), and
        weights, patch_weights (B, G, M), 0 where there is none; patch_target (B, G, K), what the
        teacher makes of the patch in the middle."""
        hidden = self.masks.draw(batch.random, len(self.globals), self.mask_probability)
        features, patches = self._student(batch, hidden)
        student = self._scores((self.head, self.patch_scorer), features, patches)
        with torch.no_grad():
            seen, patches, middle = self._teacher(batch, hidden)
            heads = self._teacher_head, cast(Head, self._teachers[-1])
            teacher = self._scores(heads, seen, torch.cat([patches, middle]))
            of_masked, of_middle = teacher[1][: len(patches)], teacher[1][len(patches) :]
            target = ((teacher[0] - self.center) / self.temperature).softmax(dim=-1)
            patch_target = self._centred(of_middle).view(*hidden.slots.shape[:2], -1)
        return {
            "features": seen,
            "student_features": features[:, self.globals],
            "student": student[0],
            "teacher": teacher[0],
            "target": target,
            "student_patches": hidden.placed(student[1]),
            "teacher_patches": hidden.placed(of_masked),
            "patch_weights": hidden.weights(student[0].dtype),
            "patch_target": patch_target,
        }

    def _student(self, batch: Batch, hidden: MaskedPatches) -> tuple[Tensor, Tensor]:
        """(B, V, F), and (n, D) of all masked patches, image by image and view by view."""
        seen = torch.cat([batch.views[number] for number in self.globals])
        masked = hidden.masked.transpose(0, 1).flatten(0, 1)
        tokens = self.backbone.tokens(seen, masked=masked, mask_token=self.mask_token[0, 0])
        whole = iter(self.backbone.pool_tokens(tokens).chunk(len(self.globals)))
        others = [view for n, view in enumerate(batch.views) if n not in self.globals]
        small = iter(features_of(self.backbone, others))
        features = [next(whole if n in self.globals else small) for n in range(len(batch.views))]
        return torch.stack(features, dim=1), self._by_image(tokens)[hidden.chosen]

    def _teacher(self, batch: Batch, hidden: MaskedPatches) -> tuple[Tensor, Tensor, Tensor]:
        """(B, G, F) of whole views, (n, D) of the patches that the student does not see, and
        (B G, D) of that in the middle of each view."""
        seen = torch.cat([batch.views[number] for number in self.globals])
        tokens = self.encoder.tokens(seen)
        features = torch.stack(self.encoder.pool_tokens(tokens).chunk(len(self.globals)), dim=1)
        patches = self._by_image(tokens)
        rows, columns = self.masks.grid
        middle = patches[:, :, rows // 2 * columns + columns // 2]
        return features, patches[hidden.chosen], middle.flatten(0, 1)

    def _by_image(self, tokens: Tokens) -> Tensor:
        """(B, G, N, D) patches of tokens that come view by view."""
        patches = tokens.patches
        return patches.view(len(self.globals), -1, *patches.shape[1:]).transpose(0, 1)

    @staticmethod
    def _scores(
        heads: tuple[Head, Head], features: Tensor, patches: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, V, K) of features (B, V, F), and (n, K) of patches (n, D); one head takes both
        together."""
        rows = features.flatten(0, 1)
        if heads[0] is heads[1]:
            both = heads[0](torch.cat([rows, patches]))
            of_rows, of_patches = both[: len(rows)], both[len(rows) :]
        else:
            of_rows, of_patches = heads[0](rows), _scores_of_patches(heads[1], patches)
        return of_rows.view(*features.shape[:2], -1), of_patches

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        weights = embeddings["patch_weights"]
        there = (weights > 0.0).nonzero(as_tuple=True)  # waits for the device, so it is first
        logits = embeddings["student"] / self.config.student_temperature
        target = self._class_target(embeddings, progress)
        class_loss = cross_entropy_of_views(logits, target, self.pairs)
        teacher = embeddings["teacher_patches"][there].detach()
        patch_target = self._patch_target(teacher, progress)
        logs = embeddings["student_patches"][there] / self.config.student_temperature
        terms = -(patch_target * logs.log_softmax(dim=-1)).sum(dim=-1)
        shares = weights[there] / weights[..., 0].numel()
        patch_loss = (shares * terms).sum()
        loss = self.config.class_weight * class_loss + self.config.patch_weight * patch_loss
        found = {"class_loss": class_loss.detach(), "patch_loss": patch_loss.detach()}

        def metrics() -> dict[str, Tensor]:
            entropy = torch.special.entr(target).sum(dim=-1).mean()
            of_patches = (shares * torch.special.entr(patch_target).sum(dim=-1)).sum()
            return {
                **found,
                "teacher_entropy": entropy,
                "kl_divergence": found["class_loss"] - entropy,
                "patch_kl_divergence": found["patch_loss"] - of_patches,
                "masked_views": shares.sum(),
            }

        carry = self._means(embeddings["teacher"], teacher)
        return StepOutput(loss, Deferred(metrics), carry=carry)

    def _class_target(self, embeddings: Mapping[str, Tensor], progress: Progress) -> Tensor:
        """(B, G, K): what the student is to give for whole views."""
        return embeddings["target"].detach()

    def _patch_target(self, scores: Tensor, progress: Progress) -> Tensor:
        """(n, K): what the student is to give for masked patches of the teacher's scores."""
        return self._centred(scores)

    def _centred(self, scores: Tensor) -> Tensor:
        """(n, K) probabilities of the teacher's scores of patches."""
        return ((scores - self.patch_center) / self.patch_temperature).softmax(dim=-1)

    @torch.no_grad()
    def _means(self, teacher: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) and (K,): the mean scores of whole views and of masked patches; the centre, where
        no patch is masked."""
        total = self.world.sum(patches.sum(dim=0))
        count = self.world.sum(total.new_tensor(float(len(patches))))
        mean = torch.where(count > 0.0, total / count, self.patch_center)
        return self.world.mean(teacher.mean(dim=(0, 1))), mean

    def after_step(self, progress: Progress, carry: Any) -> None:
        mean, of_patches = carry
        super().after_step(progress, mean)
        momentum = self.config.patch_center_momentum
        self.patch_center.lerp_(of_patches.to(self.patch_center), 1.0 - momentum)


def _scores_of_patches(head: Head, patches: Tensor) -> Tensor:
    """(n, K) of (n, D)."""
    try:
        scores: Tensor = head(patches)
    except ValueError as error:
        if len(patches) > 1:
            raise
        raise TrainingError(  # BatchNorm has no variance of one row
            f"method.patch_head: {error}; a micro-batch has one masked patch: raise "
            "train.micro_batch_size, or leave BatchNorm out of this head"
        ) from error
    return scores


def _width(backbone: Backbone) -> int:
    """Of a token."""
    return cast(TokenLayout, backbone.token_layout).width
