"""DINO: every view predicts which prototypes a teacher finds in the large views of its image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Annotated, Any, cast

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Head,
    Method,
    ParamGroup,
    Progress,
    RunFacts,
    ScheduledNumber,
    Slot,
    StepOutput,
    scheduled,
    slot,
)
from sslkit.nn.deferred import Deferred
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.prototypes import cross_entropy_of_views, pairs_of_views

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]
Temperature = Annotated[ScheduledNumber, Bounds(gt=0.0)]


class DINO(Method):
    """A student (encoder, head) predicts the probabilities over prototypes that a teacher gives
    to the global views of the same image; the teacher is a moving average of the student.

    The teacher sees the views of role `global`, the student all of them. The teacher's scores are
    centred, by a moving average of their mean over the batch, and sharpened by a low temperature:
    the first alone would make its probabilities uniform, the second alone would give all images one
    prototype. The loss is the mean cross entropy over pairs of different views, ln K (K prototypes)
    at uniform scores. Views of one size pass the encoder together, all views the head.

    The encoder is the teacher's. Each process takes the loss of its own images and their part of
    the centre, since the scores of a whole batch are too many to repeat on each.
    Source: Caron et al. 2021, arXiv 2104.14294.
    """

    divides_objective = True
    must_not_collapse = MappingProxyType({"target": "prototypes"})
    """Uniform probabilities have no spread, and one prototype for all images is none in use."""

    class Config(ComponentConfig):
        head: Slot[Head] = slot("dino")
        """Maps features to scores of prototypes, in the student and in the teacher. Its last layer
        (`Head.as_layers`) is the one that stands still at first."""
        student_temperature: PositiveFloat = 0.1
        """Softmax temperature of the student."""
        teacher_temperature: Temperature = scheduled("linear", start=0.04, end=0.07, epochs=30.0)
        """Softmax temperature of the teacher, which sharpens where it is below the student's.
        The reference code's default for 100 epochs is 0.04 throughout."""
        center_momentum: float = Field(default=0.9, ge=0.0, le=1.0)
        """Momentum of the centre, which is taken from the teacher's scores. 1: no centring."""
        teacher_momentum: Momentum = scheduled("cosine", start=0.996, end=1.0)
        """Momentum of the teacher. The reference code recommends 0.9995 for batches of 256; a plain
        number is constant."""
        freeze_last_layer_epochs: int = Field(default=1, ge=0)
        """Epochs during which the last layer of the head stands still."""
        max_grad_norm: PositiveFloat | None = 3.0
        """Clips the gradient of each tensor of weights on its own; null: not at all."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        roles = [view.role for view in facts.views]
        name = cls.__name__.lower()
        if "global" not in roles:
            yield "", f"{name} needs a view of role global, which the teacher sees, not {roles}"
        if len(roles) < 2:
            yield "", f"{name} needs 2 views or more, of which one predicts another"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said
        if config.center_momentum == 1.0:
            yield (
                "center_momentum",
                "1: the centre stays at 0, and nothing keeps the teacher from giving all images "
                "one prototype; set less than 1, such as 0.9",
            )
        epochs = facts.total_steps / facts.steps_per_epoch
        if config.freeze_last_layer_epochs >= epochs:
            yield (
                "freeze_last_layer_epochs",
                f"{config.freeze_last_layer_epochs} epochs are the run, of {epochs:g}: the last "
                "layer of the head stays random; set less",
            )
        hottest = max(config.teacher_temperature.values(facts))
        if hottest >= config.student_temperature:
            yield (
                "teacher_temperature",
                f"{hottest:g} is not below student_temperature, {config.student_temperature:g}: "
                "the teacher does not sharpen, and its probabilities become uniform; set less, "
                "such as 0.04",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        seen = sum(view.role == "global" for view in facts.views)
        return {"negatives per anchor": 0, "views that the teacher sees": seen}

    config: Config
    center: Tensor
    temperature: Tensor
    pairs: Tensor

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self._build_heads(config, backbone)
        self.teacher = EMATeacher(self.taught, dropout=False)
        self.globals = [n for n, view in enumerate(facts.views) if view.role == "global"]
        self.register_buffer("center", torch.zeros(self.head.out_dim))
        start = Progress(0, facts.total_steps, facts.steps_per_epoch)
        temperature = torch.tensor(config.teacher_temperature.at(start))
        self.register_buffer("temperature", temperature, persistent=False)
        pairs = pairs_of_views(self.globals, len(facts.views))
        self.register_buffer("pairs", pairs, persistent=False)

    def _build_heads(self, config: Config, backbone: Backbone) -> None:
        self.head = config.head.build(in_dim=backbone.num_features)

    @property
    def taught(self) -> nn.Module:
        """The student, which the teacher follows."""
        return nn.Sequential(self.backbone, self.head)

    @property
    def encoder(self) -> Backbone:
        """The teacher's, as the paper evaluates it."""
        return cast(Backbone, self._teachers[0])

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self._teacher_head.as_layers()

    @property
    def _teacher_head(self) -> Head:
        return cast(Head, self._teachers[1])

    @property
    def _teachers(self) -> Sequence[nn.Module]:
        """The parts of the teacher, as those of `taught`."""
        return tuple(self.teacher.module.children())

    def param_groups(self) -> list[ParamGroup]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [ParamGroup(named, max_grad_norm=self.config.max_grad_norm)]

    def before_step(self, progress: Progress) -> None:
        self.temperature.fill_(self.config.teacher_temperature.at(progress))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, G, F) of the teacher's encoder; student (B, V, K), the scores of all views;
        teacher (B, G, K), those of the global ones; target (B, G, K), what the teacher makes of
        them: probabilities."""
        _, student = _scores(self.backbone, self.head, batch.views)
        with torch.no_grad():
            seen = [batch.views[number] for number in self.globals]
            features, teacher = _scores(self.encoder, self._teacher_head, seen)
            target = ((teacher - self.center) / self.temperature).softmax(dim=-1)
        return {"features": features, "student": student, "teacher": teacher, "target": target}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        student, target = embeddings["student"], embeddings["target"].detach()
        logits = student / self.config.student_temperature
        loss = cross_entropy_of_views(logits, target, self.pairs)
        with torch.no_grad():
            mean_score = self.world.mean(embeddings["teacher"].mean(dim=(0, 1)))
        found = loss.detach()

        def metrics() -> dict[str, Tensor]:
            entropy = torch.special.entr(target).sum(dim=-1).mean()
            return {"teacher_entropy": entropy, "kl_divergence": found - entropy}

        return StepOutput(loss, Deferred(metrics), carry=mean_score)

    def after_backward(self, progress: Progress) -> None:
        if progress.epochs_done < self.config.freeze_last_layer_epochs:
            _, *heads = self.taught.children()
            for head in cast(Iterable[Head], heads):
                for parameter in head.as_layers()[-1].parameters():
                    parameter.grad = None

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.center.lerp_(carry.to(self.center), 1.0 - self.config.center_momentum)
        momentum = self.config.teacher_momentum.at(progress.previous())
        self.teacher.update(self.taught, momentum)


def _scores(backbone: nn.Module, head: nn.Module, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, V, F) and (B, V, K) of V views, all of which pass the head together."""
    together = torch.stack(features_of(backbone, views), dim=1)
    scores: Tensor = head(together.flatten(0, 1))
    return together, scores.view(*together.shape[:2], -1)


def features_of(backbone: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """(B, F) of each view; those of one size that stand together pass the encoder together."""
    features: list[Tensor] = []
    for _, alike in groupby(views, key=lambda view: view.shape[-2:]):
        group = list(alike)
        features += backbone(torch.cat(group)).chunk(len(group))
    return features
