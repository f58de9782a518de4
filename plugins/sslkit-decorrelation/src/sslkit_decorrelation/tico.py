"""TiCo: agree with a momentum teacher, away from where embeddings have been."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Head,
    Method,
    Progress,
    RunFacts,
    ScheduledNumber,
    Slot,
    StepOutput,
    scheduled,
    slot,
)
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.numerics import normalize

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


def tico_terms(z: Tensor, target: Tensor, covariance: Tensor) -> Tensor:
    """(2,): 1 minus the mean cosine of z and target, and the mean of z' C z, unweighted.

    z, target: (B, D), of unit length; covariance C: (D, D), without gradient. The second is how
    much of z lies where C is large: 1 where all embeddings are one, 1 / D where they are alike in
    all directions. Source: Zhu et al. 2022, arXiv 2206.10698.
    """
    invariance = 1.0 - (z * target).sum(dim=1).mean()
    return torch.stack([invariance, ((z @ covariance) * z).sum(dim=1).mean()])


class TiCo(Method):
    """The projection of the first view agrees with the teacher's of the second, and keeps away from
    the directions in which projections of this and earlier batches lie.

    These are known by their covariance, which is not centred: a moving average over batches, of the
    online network alone. It takes in the batch before the loss and without gradient, becomes state
    after the optimiser step, and starts from zero, so that the second term has 1 - momentum^t of
    its weight in step t. The teacher moves before each step towards the network as the previous
    step left it. Watch `train/invariance` and `train/covariance`.
    Source: Zhu et al. 2022, arXiv 2206.10698.
    """

    covariance: Tensor

    class Config(ComponentConfig):
        projector: Slot[Head] = slot(
            "mlp", hidden_dim=4096, out_dim=256, output_norm="none", output_bias=True
        )
        """Maps features to the projection, online and in the teacher."""
        covariance_weight: NonNegativeFloat = 8.0
        """Weight of the second term, rho of the paper. Without it training collapses."""
        covariance_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
        """Momentum of the covariance, beta of the paper; 0 is that of the batch alone."""
        loss_weight: PositiveFloat = 1.0
        """Multiplies the loss."""
        teacher_momentum: Momentum = scheduled("cosine", start=0.99, end=1.0)
        """Momentum of the teacher; a plain number is constant."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 2:
            yield "", f"tico needs 2 views, but the augmentation makes {len(facts.views)}"
        if facts.batch_size < 2:
            yield "", "tico needs train.batch_size >= 2: its head uses batch statistics"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said
        if config.covariance_weight == 0:
            yield (
                "covariance_weight",
                "0 leaves nothing that keeps images apart: training will collapse; set 8",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"negatives per anchor": 0}

    config: Config

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        self.teacher = EMATeacher(self.taught)
        width = self.projector.out_dim
        self.register_buffer("covariance", torch.zeros(width, width))

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    @property
    def taught(self) -> nn.Module:
        """The part of the network that the teacher follows: all that is trained."""
        return nn.Sequential(self.backbone, self.projector)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self.taught, self.config.teacher_momentum.at(progress))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, 1, F) and z (B, 1, D) of the first view, target (B, 1, D) of the second."""
        first, second = batch.views
        features = self.backbone(first)
        named = {
            "features": features,
            "z": self.projector(features),
            "target": self.teacher(second),
        }
        return {name: rows[:, None] for name, rows in named.items()}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = normalize(embeddings["z"][:, 0])
        target = normalize(embeddings["target"][:, 0].detach())
        with torch.no_grad():
            of_batch = z.T @ z / len(z)
            covariance = of_batch.lerp(self.covariance, self.config.covariance_momentum)
        terms = tico_terms(z, target, covariance)
        invariance, overlap = terms.unbind()
        loss = self.config.loss_weight * (invariance + self.config.covariance_weight * overlap)
        names = ("invariance", "covariance")
        metrics = dict(zip(names, terms.detach().unbind(), strict=True))
        return StepOutput(loss, metrics, carry=covariance)

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.covariance.copy_(carry)
