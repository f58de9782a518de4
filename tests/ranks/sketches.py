"""Methods of other families, a few lines each and without a line of distributed code: what an
author would write for one process has to be exact on several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Backbone, Batch, ComponentConfig, Method, Progress, RunFacts, StepOutput
from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import normalize

WIDTH = 8


class _Sketch(Method):
    class Config(ComponentConfig):
        pass

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head: nn.Module = nn.Linear(backbone.num_features, WIDTH)

    @property
    def networks(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.head)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = torch.stack([self.backbone(view) for view in batch.views], dim=1)
        return {"features": features, "z": self.head(features)}


class Prototypes(_Sketch):
    """SwAV's: learnt prototypes, which the objective alone uses, and codes by Sinkhorn over the
    whole batch; a queue of past embeddings joins them (Caron et al. 2020, arXiv 2006.09882)."""

    queue: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.prototypes = nn.Parameter(torch.randn(6, WIDTH))
        self.register_buffer("queue", normalize(torch.randn(10, WIDTH)))

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, centres = normalize(embeddings["z"]), normalize(self.prototypes)
        scores = [z[:, view] @ centres.t() for view in range(2)]
        with torch.no_grad():
            past = self.queue.to(z.dtype) @ centres.t()
            codes = [sinkhorn(torch.cat([part, past]))[: len(part)] for part in scores]
        losses = [
            F.cross_entropy(scores[1 - view] / 0.1, codes[view], reduction="mean")
            for view in range(2)
        ]
        return StepOutput(torch.stack(losses).mean(), carry=z[:, 0].detach())

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.queue.copy_(torch.cat([carry.to(self.queue.dtype), self.queue])[: len(self.queue)])


def sinkhorn(scores: Tensor) -> Tensor:
    """Three rounds, at 0.05."""
    q = (scores / 0.05).softmax(dim=1)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


class Centred(_Sketch):
    """DINO's: a teacher whose outputs are centred by a running mean of the whole batch (Caron et
    al. 2021, arXiv 2104.14294)."""

    centre: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.teacher = EMATeacher(self.networks)
        self.register_buffer("centre", torch.zeros(WIDTH))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        found["taught"] = torch.stack([self.teacher(view) for view in batch.views], dim=1)
        return found

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, taught = embeddings["z"], embeddings["taught"].detach()
        target = ((taught.flip(1) - self.centre) / 0.2).softmax(dim=-1)
        loss = -(target * (z / 0.1).log_softmax(dim=-1)).sum(-1).mean()
        return StepOutput(loss, carry=taught.mean(dim=(0, 1)))

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.centre.lerp_(carry.to(self.centre.dtype), 0.1)
        self.teacher.update(self.networks, 0.9)


class WholeBatch(_Sketch):
    """Barlow Twins' correlations over the whole batch (Zbontar et al. 2021, arXiv 2103.03230), with
    a random projection that the objective draws. The head has no bias and begins with an
    activation: a shift of all embeddings has no gradient but rounding errors, which AdamW makes
    steps of."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        linear = nn.Linear(backbone.num_features, WIDTH, bias=False)
        self.head = nn.Sequential(nn.GELU(), linear)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"]
        z = z @ torch.randn(WIDTH, WIDTH, device=z.device).to(z.dtype)
        z = (z - z.mean(0)) / z.std(0)
        correlation = z[:, 0].t() @ z[:, 1] / len(z)
        return StepOutput((correlation - torch.eye(WIDTH, dtype=z.dtype)).square().sum())


class Masked(_Sketch):
    """Reconstruction of what a mask hides; masks are drawn by image. The mask token is used by the
    networks, and pulled towards zero by the objective as well."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.token = nn.Parameter(torch.full((1, 3, 1, 1), 0.5))
        self.never = nn.Parameter(torch.zeros(3))  # takes no part in any step

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        view = batch.views[0]
        hidden = batch.random.uniform("mask", 16).view(-1, 1, 4, 4) < 0.5
        mask = F.interpolate(hidden.to(view.dtype), size=view.shape[-2:])
        features = self.backbone(view * (1 - mask) + self.token * mask)
        target = F.adaptive_avg_pool2d(view, 2).flatten(1)[:, :WIDTH]
        return {"features": features, "z": self.head(features), "target": target}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        error = (embeddings["z"] - embeddings["target"].detach()).square().mean(1)
        weights = batch.random.uniform("weight", 1)[:, 0].to(error.dtype)
        return StepOutput((error * weights).mean() + 0.01 * self.token.square().sum())


class DividedCentre(Centred):
    """The same, where each rank computes the loss of its share."""

    divides_objective = True

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        found = super().objective(embeddings, batch, progress)
        metrics = {"share": len(embeddings["z"]) / 1.0}
        return StepOutput(found.loss, metrics, carry=self.world.mean(found.carry))


class DividedBatch(WholeBatch):
    """Barlow Twins' loss from statistics of the batch that the ranks sum."""

    divides_objective = True

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"]
        z = z @ torch.randn(WIDTH, WIDTH, device=z.device).to(z.dtype)
        count = len(z) * self.world.size
        z = z - self.world.sum(z.sum(0)) / count
        z = z / (self.world.sum(z.square().sum(0)) / (count - 1)).sqrt()
        correlation = self.world.sum(z[:, 0].t() @ z[:, 1]) / count
        return StepOutput((correlation - torch.eye(WIDTH, dtype=z.dtype)).square().sum())


class DividedPrototypes(Prototypes):
    """Learnt prototypes in a divided objective: their gradient is a sum over ranks too."""

    divides_objective = True

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, centres = normalize(embeddings["z"]), normalize(self.prototypes)
        scores = z @ centres.t()
        with torch.no_grad():
            likely = self.world.mean(scores.softmax(-1).mean(dim=(0, 1)))
            codes = (scores / 0.1 - likely.log()).softmax(-1)
        loss = F.cross_entropy(scores[:, 0] / 0.1, codes[:, 1])
        return StepOutput(loss, carry=self.world.mean(z[:, 0].detach().mean(0))[None])


_ALL = (
    Prototypes, Centred, WholeBatch, Masked, DividedCentre, DividedBatch, DividedPrototypes,
)  # fmt: skip
SKETCHES = {cls.__name__.lower(): cls for cls in _ALL}
