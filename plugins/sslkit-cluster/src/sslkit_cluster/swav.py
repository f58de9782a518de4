"""SwAV: every view predicts to which prototypes the other views of its image belong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

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
from sslkit.nn.deferred import Deferred
from sslkit.nn.functional import normalize
from sslkit.nn.numerics import without_autocast
from sslkit.nn.prototypes import cross_entropy_of_views, pairs_of_views, sinkhorn
from sslkit.nn.queue import FeatureQueue
from sslkit.nn.representation import prototypes_in_use

Temperature = Annotated[ScheduledNumber, Bounds(gt=0.0)]


class SwAV(Method):
    """Learnt prototypes, and codes: the assignment of the global views to them that uses all
    prototypes alike. Each view predicts the codes of the global views of its image, but its own.

    Codes come from the batch, and from a queue of earlier images where it is small; they carry no
    gradient. The loss is the mean over global views of the mean over the other views of the cross
    entropy, ln K (K prototypes) where all scores are equal. Prototypes have unit length before each
    step and stand still at first. Views of one size pass the backbone together, all of them the
    projector. Each process takes the loss of its own images, and the codes from those of all.
    Source: Caron et al. 2020, arXiv 2006.09882.
    """

    divides_objective = True
    must_not_collapse = MappingProxyType({"scores": "prototypes", "shares": "prototypes"})
    """Two ways to collapse: all images choose one prototype, which the highest scores show; or all
    scores become alike and codes uniform, while the highest still differ: then shares are equal."""

    class Config(ComponentConfig):
        projector: Slot[Head] = slot(
            "mlp",
            hidden_dim=2048,
            out_dim=128,
            hidden_bias=True,
            output_norm="none",
            output_bias=True,
        )
        """Maps features to the embedding, which is compared with the prototypes."""
        num_prototypes: int = Field(default=3000, ge=2)
        """Prototypes. Fewer do for few classes: lightly has 512 for CIFAR-10."""
        temperature: Temperature = scheduled(0.1)
        """Softmax temperature of the predictions."""
        epsilon: Temperature = scheduled(0.05)
        """Temperature of the codes: lower makes them harder. Where the loss stays at ln K, set less
        than `temperature` times the metric `view_agreement`, such as 0.03."""
        sinkhorn_iterations: PositiveInt = 3
        """Iterations that even out the use of the prototypes."""
        freeze_prototypes_epochs: float = Field(default=1.0, ge=0.0)
        """Epochs during which the prototypes stand still; fractions are allowed."""
        queue_size: int = Field(default=0, ge=0)
        """Earlier images from which codes are taken too, once there are so many; 0: none. 3840 for
        batches of 256."""
        queue_start_epoch: float = Field(default=15.0, ge=0.0)
        """Epochs until the queue begins to fill. Without effect unless `queue_size` is above 0."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        roles = [view.role for view in facts.views]
        if "global" not in roles or len(roles) < 2:
            yield (
                "",
                "swav needs a view of role global, which is assigned to prototypes, and another "
                f"that predicts it; the views are {', '.join(roles)}",
            )
        if facts.batch_size < 2:
            yield "", "swav needs train.batch_size >= 2: images share the prototypes"

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        epochs = facts.total_steps / facts.steps_per_epoch
        images = facts.batch_size + config.queue_size
        if images < config.num_prototypes:
            yield (
                "queue_size",
                f"codes of {images} images (batch and queue) cannot use {config.num_prototypes} "
                f"prototypes: set {config.num_prototypes - facts.batch_size} or more, or fewer "
                "prototypes",
            )
        if _reaches(config.epsilon.values(facts), config.temperature.values(facts)):
            yield (
                "epsilon",
                "it reaches temperature: codes are no harder than predictions, scores shrink until "
                "all are equal, and the loss stays at ln K; set it to half of temperature or less",
            )
        if config.freeze_prototypes_epochs >= epochs:
            yield (
                "freeze_prototypes_epochs",
                f"{config.freeze_prototypes_epochs:g} epochs are the run, of {epochs:g}: the "
                "prototypes stay random; set less",
            )
        if config.queue_size and config.queue_start_epoch >= epochs:
            yield (
                "queue_start_epoch",
                f"the queue begins after {config.queue_start_epoch:g} epochs, and the run has "
                f"{epochs:g}: it takes no part; set less",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        images = facts.batch_size + config.queue_size
        return {"negatives per anchor": 0, "images that codes are taken from": images}

    config: Config
    pairs: Tensor

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = config.projector.build(in_dim=backbone.num_features)
        width = self.projector.out_dim
        self.prototypes = nn.Linear(width, config.num_prototypes, bias=False)
        self.globals = [n for n, view in enumerate(facts.views) if view.role == "global"]
        pairs = pairs_of_views(self.globals, len(facts.views))
        self.register_buffer("pairs", pairs, persistent=False)
        self.predicting = next(n for n in range(len(facts.views)) if n != self.globals[0])
        """The first view that predicts what the first global one is assigned to."""
        self.queue: FeatureQueue | None = None
        if config.queue_size:  # a row has the embeddings of all global views of an image
            row = width * len(self.globals)
            self.queue = FeatureQueue(config.queue_size, row, random_start=False)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.projector.as_layers()

    @torch.no_grad()
    def before_step(self, progress: Progress) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, G, F) and z (B, G, D), of unit length, of the G global views; scores
        (B, V, K), the cosines of all views with the prototypes; shares (B, G, K), what the global
        ones say as probabilities, which are watched alone."""
        parts: list[Tensor] = []
        for _, alike in groupby(batch.views, key=lambda view: view.shape[1:]):
            views = list(alike)
            parts += self.backbone(torch.cat(views)).chunk(len(views))
        features = torch.stack(parts, dim=1)
        z = normalize(self.projector(features.flatten(0, 1))).view(*features.shape[:2], -1)
        with without_autocast(z):
            scores = self.prototypes(z)
        shares = (scores[:, self.globals].detach() / self.config.epsilon.start).softmax(dim=-1)
        seen = {"features": features[:, self.globals], "z": z[:, self.globals]}
        return {**seen, "scores": scores, "shares": shares}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        scores, config = embeddings["scores"], self.config
        assigned = scores[:, self.globals].detach()
        codes = self._codes(assigned, config.epsilon.at(progress))
        logits = scores / config.temperature.at(progress)
        loss = cross_entropy_of_views(logits, codes, self.pairs)
        carry = None
        if self.queue is not None:
            carry = self.world.gather(embeddings["z"].detach().flatten(1))

        def metrics() -> dict[str, Tensor]:
            nearest = F.one_hot(assigned[:, 0].argmax(dim=1), config.num_prototypes)
            return {
                "prototypes_in_use": prototypes_in_use(nearest),
                "code_entropy": torch.special.entr(codes).sum(dim=-1).mean(),
                "view_agreement": view_agreement(assigned[:, 0], scores[:, self.predicting]),
            }

        return StepOutput(loss, Deferred(metrics), carry=carry)

    def _codes(self, assigned: Tensor, epsilon: float) -> Tensor:
        """(B, G, K): the codes of each global view, from the batch and, once it is full, the
        queue."""
        past: list[Tensor | None] = [None] * len(self.globals)
        if self.queue is not None and len(self.queue.recent) == len(self.queue):
            weight = self.prototypes.weight.detach()
            past = [rows @ weight.T for rows in self.queue.features.chunk(len(past), dim=1)]
        iterations, gather = self.config.sinkhorn_iterations, self.world.gather
        codes = [
            sinkhorn(view, epsilon, iterations, past=earlier, gather=gather)
            for view, earlier in zip(assigned.unbind(dim=1), past, strict=True)
        ]
        return torch.stack(codes, dim=1)

    def after_backward(self, progress: Progress) -> None:
        if progress.epoch < self.config.freeze_prototypes_epochs:
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress, carry: Any) -> None:
        if self.queue is not None and progress.previous().epoch >= self.config.queue_start_epoch:
            self.queue.push(carry)


def _reaches(low: list[float], high: list[float]) -> bool:
    """Whether a number is as high as another one at some step: `ScheduledNumber.values` of both,
    of which a constant has one."""
    steps = max(len(low), len(high))
    pairs = zip(low * (steps // len(low)), high * (steps // len(high)), strict=True)
    return any(one >= other for one, other in pairs)


@torch.no_grad()
def view_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of two views' scores (B, K), without what all images or all prototypes share: 1
    where the views of an image have the same, 0 where they have nothing in common.

    Near equal scores codes are 1 / K (1 + s / epsilon) and predictions 1 / K (1 + s / temperature),
    s the scores without those means. So the loss is least where scores are `agreement` x
    temperature / epsilon of what they are: they grow where that is above 1, and shrink below."""
    one, other = (
        each - each.mean(dim=0) - each.mean(dim=1, keepdim=True) + each.mean()
        for each in (first, second)
    )
    lengths = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    found: Tensor = (one * other).sum() / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    return found
