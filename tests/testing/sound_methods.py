"""Methods of every family with networks of a few layers, written from their papers: sound, so that
no law may refuse them. The losses are those of the papers; sizes are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Apart, Backbone, Batch, Method, ParamGroup, Progress, RunFacts, StepOutput
from sslkit.nn.deferred import Deferred
from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import feature_std, normalize, nt_xent
from sslkit.nn.queue import FeatureQueue

WIDTH = 8
PROTOTYPES = 12


def mlp(width: int, out: int = WIDTH, *, norm: bool = True) -> nn.Sequential:
    layers = [nn.Linear(width, 16, bias=not norm), nn.BatchNorm1d(16)][: 1 + norm]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, out))


class Projected(Method):
    """A backbone and a projector: z (B, V, D)."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = mlp(backbone.num_features)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = [self.backbone(view) for view in batch.views]
        z = [self.projector(each) for each in features]
        return {"features": torch.stack(features, 1), "z": torch.stack(z, 1)}


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine."""
    return -(normalize(prediction) * normalize(target)).sum(-1).mean()


class SimSiam(Projected):
    """Chen and He 2021; the predictor's learning rate is constant."""

    must_not_collapse: Mapping[str, Apart] | None = {"z": "spread"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector.append(nn.BatchNorm1d(WIDTH, affine=False))
        self.predictor = mlp(WIDTH)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        p = [self.predictor(z) for z in found["z"].unbind(1)]
        return {**found, "p": torch.stack(p, 1)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        p, z = embeddings["p"], embeddings["z"].detach()
        loss = (cosine_loss(p[:, 0], z[:, 1]) + cosine_loss(p[:, 1], z[:, 0])) / 2
        return StepOutput(loss, Deferred(lambda: {"std": feature_std(z[:, 0])}))

    def param_groups(self) -> list[ParamGroup]:
        own, others = [], []
        for name, parameter in self.named_parameters():
            (own if name.startswith("predictor") else others).append((name, parameter))
        return [ParamGroup(others), ParamGroup(own, lr_constant=True)]


class DINO(Method):
    """Caron et al. 2021, on two global and any number of local views: centre, temperature of the
    teacher that rises, weights of prototypes that are normalised and stand still for an epoch."""

    centre: Tensor
    must_not_collapse: Mapping[str, Apart] | None = {"target": "prototypes"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = mlp(backbone.num_features, norm=False)
        last = nn.Linear(WIDTH, PROTOTYPES, bias=False)
        self.last = nn.utils.parametrizations.weight_norm(last)
        self.last.parametrizations.weight.original0.data.fill_(1.0)
        self.last.parametrizations.weight.original0.requires_grad_(False)
        self.teacher = EMATeacher(self.taught)
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    @property
    def taught(self) -> nn.Module:
        return nn.ModuleList([self.backbone, self.head, self.last])

    @property
    def encoder(self) -> Backbone:
        found = self.teacher.module[0]
        assert isinstance(found, Backbone)
        return found

    @staticmethod
    def scores(networks: Any, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        backbone, head, last = networks
        features = [backbone(view) for view in views]
        return torch.stack(features, 1), torch.stack(
            [last(normalize(head(each))) for each in features], 1
        )

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        _, student = self.scores((self.backbone, self.head, self.last), batch.views)
        with torch.no_grad():
            features, target = self.scores(self.teacher.module, batch.views[:2])
        return {"features": features, "student": student, "target": target}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        temperature = 0.04 + 0.03 * min(progress.epoch / 2.0, 1.0)
        target = ((embeddings["target"] - self.centre) / temperature).softmax(-1)
        student = (embeddings["student"] / 0.1).log_softmax(-1)
        pairs = [
            -(target[:, t] * student[:, s]).sum(-1).mean()
            for t in range(2)
            for s in range(student.shape[1])
            if s != t
        ]
        entropy = -(target * target.clamp_min(1e-9).log()).sum(-1).mean()
        return StepOutput(
            torch.stack(pairs).mean(), {"teacher_entropy": entropy}, embeddings["target"].detach()
        )

    def after_backward(self, progress: Progress) -> None:
        if progress.epochs_done < 1:
            for parameter in self.last.parameters():
                parameter.grad = None

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.centre.lerp_(carry.mean((0, 1)).to(self.centre), 0.1)
        self.teacher.update(self.taught, 0.99)

    def param_groups(self) -> list[ParamGroup]:
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        biases = [(n, p) for n, p in named if p.ndim < 2]
        return [
            ParamGroup([(n, p) for n, p in named if p.ndim > 1], max_grad_norm=3.0),
            ParamGroup(biases, max_grad_norm=3.0, weight_decay_scale=0.0),
        ]


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes (B, K) with equal columns."""
    q = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-12)
        q = q / q.sum(1, keepdim=True).clamp_min(1e-12)
    return q


class SwAV(Projected):
    """Caron et al. 2020: prototypes that are normalised after each step and stand still for three
    steps, and a queue that takes part once it is full."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.prototypes = nn.Linear(WIDTH, PROTOTYPES, bias=False)
        self.queues = nn.ModuleList(FeatureQueue(20, WIDTH, random_start=False) for _ in range(2))
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = normalize(embeddings["z"])
        scores = self.prototypes(z)
        losses = []
        for view, queue in enumerate(self.queues):
            assert isinstance(queue, FeatureQueue)
            past = self.prototypes(queue.recent.to(z)) if len(queue.recent) == 20 else z[:0, 0, :0]
            seen = torch.cat([scores[:, view].detach(), past.detach().reshape(-1, PROTOTYPES)])
            codes = sinkhorn(seen)[: len(z)]
            losses.append(-(codes * (scores[:, 1 - view] / 0.1).log_softmax(-1)).sum(-1).mean())
        return StepOutput(torch.stack(losses).mean(), carry=z.detach())

    def after_backward(self, progress: Progress) -> None:
        if progress.step < 3:
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.normalize_prototypes()
        for view, queue in enumerate(self.queues):
            assert isinstance(queue, FeatureQueue)
            queue.push(carry[:, view])


class SSLHSIC(Projected):
    """Li et al. 2021: dependence between embeddings and identity of images, by kernels."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = normalize(embeddings["z"])
        b, views = z.shape[:2]
        distances = (z.flatten(0, 1)[:, None] - z.flatten(0, 1)[None]).square().sum(-1)
        k = (-distances / 0.5).exp()
        same = torch.eye(b, dtype=k.dtype, device=k.device).repeat_interleave(views, 0)
        same = same.repeat_interleave(views, 1)
        h = torch.eye(b * views, dtype=k.dtype, device=k.device) - 1.0 / (b * views)
        with_images = (k * same).sum() / (b * views) - k.mean()
        with_itself = (k @ h @ k @ h).diagonal().sum() / (b * views - 1) ** 2
        return StepOutput(-with_images + 3.0 * with_itself.clamp_min(1e-12).sqrt())


class MemoryBank(Projected):
    """Clusters a bank that holds an embedding of every image: centres move at the start of an
    epoch, and images are told from each other by the centre that is theirs."""

    bank: Tensor
    centres: Tensor
    must_not_collapse: Mapping[str, Apart] | None = {"z": "spread"}

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.register_buffer("bank", normalize(torch.randn(facts.num_images, WIDTH)))
        self.register_buffer("centres", normalize(torch.randn(PROTOTYPES, WIDTH)))

    def before_step(self, progress: Progress) -> None:
        if progress.step % progress.steps_per_epoch == 0:
            chosen = (self.bank @ self.centres.T).argmax(1)
            sums = torch.zeros_like(self.centres).index_add_(0, chosen, self.bank)
            self.centres.copy_(normalize(self.centres + sums))

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = normalize(embeddings["z"]).mean(1)
        centres = self.centres.to(z)
        chosen = (self.bank.to(z)[batch.indices] @ centres.T).argmax(1)
        loss = F.cross_entropy(z @ centres.T / 0.1, chosen)
        return StepOutput(loss, carry=(batch.indices, normalize(z.detach())))

    def after_step(self, progress: Progress, carry: Any) -> None:
        indices, z = carry
        self.bank[indices] = z.to(self.bank)


class Thaws(Projected):
    """Two losses, and a second head that is frozen in the first epoch: its parameters require
    gradients from the second one on."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.second = mlp(backbone.num_features)

    def before_step(self, progress: Progress) -> None:
        self.second.requires_grad_(progress.epochs_done >= 1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        w = [self.second(each) for each in found["features"].unbind(1)]
        return {**found, "w": torch.stack(w, 1)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, w = embeddings["z"], embeddings["w"]
        contrast, follow = nt_xent(z[:, 0], z[:, 1], 0.2), cosine_loss(w[:, 0], z[:, 1].detach())
        parts = {"contrast": contrast.detach(), "follow": follow.detach()}
        return StepOutput(contrast + 0.5 * follow, parts)


class Scheduled(Projected):
    """Sets numbers of a step before it, and subtracts its centre in embed."""

    temperature: float
    mean: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def before_step(self, progress: Progress) -> None:
        self.temperature = 0.1 + 0.1 * progress.fraction

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        return {**found, "z": (found["z"] - self.mean) / self.temperature}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"]
        loss = nt_xent(z[:, 0], z[:, 1], self.temperature)
        some = torch.randperm(len(z))[:4]  # a metric of some images

        def metrics() -> dict[str, Tensor]:
            return {"some": z[torch.randperm(len(z))[:4], 0].std(), "others": z[some, 0].std()}

        return StepOutput(loss, Deferred(metrics), z.detach())

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.mean.lerp_(carry.mean((0, 1)).to(self.mean) * self.temperature, 0.1)


JOINT: tuple[type[Method], ...] = (SimSiam, SwAV, SSLHSIC, MemoryBank, Thaws, Scheduled)
"""Those of the kit's own recipe."""
