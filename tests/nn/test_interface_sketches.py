"""The interfaces carry methods of every family: short versions of BYOL, MoCo, SwAV, RotNet and
MAE, driven as the engine drives a method, on whole batches and on micro-batches.

They are sketches, not the published methods: what they prove is that teachers, queues, prototypes,
pretext labels, masks and micro-batches need nothing that the interfaces lack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    ParamGroup,
    Preprocess,
    Progress,
    RunFacts,
    StepOutput,
    ViewSpec,
)
from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import info_nce, normalize
from sslkit.nn.mlp import mlp
from sslkit.nn.queue import FeatureQueue
from sslkit.randomness import SampleRandom

FIRST = Progress(0, 1, 1)

BATCH, SIDE, PATCH, WIDTH, STEPS = 12, 8, 4, 16, 4
PLAIN = ComponentConfig()


class PatchNet(Backbone):
    """A token network without BatchNorm, so that micro-batches are exact."""

    def __init__(self) -> None:
        super().__init__(PLAIN)
        self.num_features = WIDTH
        self.preprocess = Preprocess(SIDE, SIDE, "bilinear", (0.0,), (1.0,))
        self.embed_patches = nn.Linear(3 * PATCH**2, WIDTH)
        self.mix = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def tokens(self, patches: Tensor) -> Tensor:
        """(B, L, 3 p^2) to (B, L, F)."""
        tokens = self.embed_patches(patches)
        return tokens + self.mix(tokens - tokens.mean(dim=1, keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(patchify(images)).mean(dim=1)


def patchify(images: Tensor) -> Tensor:
    """(B, C, S, S) to (B, L, C p^2)."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def head(in_dim: int = WIDTH, out_dim: int = 8) -> nn.Sequential:
    return mlp(in_dim, WIDTH, out_dim, hidden_norm="ln", output_bias=False)


class BYOL(Method):
    """Teacher after the optimiser step, with the new online weights; separate view passes."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector, self.predictor = head(), head(in_dim=8)
        self.teacher = EMATeacher(nn.Sequential(self.backbone, self.projector))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = [self.backbone(view) for view in batch.views]
        predictions = [self.predictor(self.projector(h)) for h in features]
        targets = [self.teacher(view) for view in batch.views]
        return {
            "features": torch.stack(features, dim=1),
            "prediction": torch.stack(predictions, dim=1),
            "target": torch.stack(targets, dim=1),
        }

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        prediction = normalize(embeddings["prediction"])
        target = normalize(embeddings["target"]).flip(1)
        return StepOutput((2 - 2 * (prediction * target).sum(dim=-1)).sum(dim=1).mean())

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.teacher.update(nn.Sequential(self.backbone, self.projector), 0.9)


class MoCo(Method):
    """Teacher before the forward pass; the keys enter the queue after the loss."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = head()
        self.teacher = EMATeacher(nn.Sequential(self.backbone, self.projector))
        self.queue = FeatureQueue(32, 8)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(nn.Sequential(self.backbone, self.projector), 0.9)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = self.backbone(batch.views[0])
        keys = self.teacher(batch.views[1])
        return {"features": features, "query": self.projector(features), "key": keys}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        keys = normalize(embeddings["key"])
        loss = info_nce(embeddings["query"], keys, self.queue.features, 0.2)
        return StepOutput(loss, carry=keys)

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.queue.push(carry)


class SwAV(Method):
    """Views of two sizes; prototypes normalised before, and frozen in the first steps; codes of
    the whole batch by Sinkhorn."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.projector = head()
        self.prototypes = nn.Linear(8, 6, bias=False)
        self.global_views = [i for i, view in enumerate(facts.views) if view.role == "global"]

    def before_step(self, progress: Progress) -> None:
        with torch.no_grad():
            self.prototypes.weight.copy_(normalize(self.prototypes.weight))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = [normalize(self.projector(self.backbone(view))) for view in batch.views]
        return {"scores": torch.stack([self.prototypes(row) for row in z], dim=1)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        scores = embeddings["scores"]
        losses = []
        for assigned in self.global_views:
            codes = sinkhorn(scores[:, assigned].detach())
            losses += [
                -(codes * (scores[:, other] / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
                for other in range(scores.shape[1])
                if other != assigned
            ]
        return StepOutput(torch.stack(losses).mean())

    def after_backward(self, progress: Progress) -> None:
        if progress.step < 2:
            self.prototypes.weight.grad = None


def sinkhorn(scores: Tensor) -> Tensor:
    """(B, K) codes with equal prototype use; rows sum to 1."""
    logits = scores / 0.05
    for _ in range(3):
        logits = logits - logits.logsumexp(dim=0, keepdim=True)
        logits = logits - logits.logsumexp(dim=1, keepdim=True)
    return logits.exp()


class RotNet(Method):
    """Pretext classification: all four rotations of every image are in the batch. The classifier
    has its own learning rate, and needs labels of nobody."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.classifier = nn.Linear(WIDTH, 4)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        rotated = torch.cat([batch.views[0].rot90(k, dims=(2, 3)) for k in range(4)])
        features = self.backbone(rotated).unflatten(0, (4, -1)).transpose(0, 1)
        return {"features": features[:, 0], "logits": self.classifier(features)}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        logits = embeddings["logits"]
        target = torch.arange(4).expand(len(logits), 4)
        accuracy = (logits.detach().argmax(dim=-1) == target).float().mean()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        return StepOutput(loss, metrics={"rotation_accuracy": accuracy})

    def param_groups(self) -> list[ParamGroup]:
        return [
            ParamGroup(list(self.backbone.named_parameters())),
            ParamGroup(list(self.classifier.named_parameters()), lr_scale=2.0, lr_constant=True),
        ]


class MAE(Method):
    """Masks from the keyed randomness of each sample; the loss runs over masked patches."""

    backbone: PatchNet

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))
        self.decoder = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * PATCH**2))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        patches = patchify(batch.views[0])
        count = patches.shape[1]
        order = batch.random.permutation("mask", count)
        kept, restore = order[:, : count // 4], order.argsort(dim=1)
        visible = self.backbone.tokens(gather(patches, kept))
        hidden = self.mask_token.expand(len(patches), count - kept.shape[1], WIDTH)
        mean = visible.mean(dim=1, keepdim=True)
        full = gather(torch.cat([visible, hidden + mean], dim=1), restore)
        target = (patches - patches.mean(-1, True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        errors = (self.decoder(full) - target).square().mean(dim=-1)
        masked = (restore >= kept.shape[1]).float()
        return {"features": visible.mean(dim=1), "errors": errors, "masked": masked}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        errors, masked = embeddings["errors"], embeddings["masked"]
        return StepOutput((errors * masked).sum() / masked.sum())


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """(B, L, D) at (B, K) positions."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


METHODS = [BYOL, MoCo, SwAV, RotNet, MAE]
VIEWS = (ViewSpec(SIDE), ViewSpec(SIDE), ViewSpec(PATCH, role="local"))
FACTS = RunFacts(48, 3, (SIDE, SIDE), None, BATCH, 4, STEPS, VIEWS)


def build(cls: type[Method]) -> Method:
    torch.manual_seed(0)
    count = 3 if cls is SwAV else 2
    return cls(PLAIN, PatchNet(), replace(FACTS, views=VIEWS[:count])).double()


def make_batch(step: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(48, generator=generator)[:BATCH]
    views = tuple(
        torch.rand(BATCH, 3, view.size, view.size, generator=generator, dtype=torch.float64)
        for view in VIEWS[:count]
    )
    return Batch(views, indices, SampleRandom(0, "method", step, indices))


def embed_in_parts(method: Method, batch: Batch, part: int) -> dict[str, Tensor]:
    """Embeddings of the batch, `part` images at a time."""
    slices = [slice(start, start + part) for start in range(0, len(batch), part)]
    parts = [method.embed(batch.select(rows)) for rows in slices]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def optimizer_step(
    method: Method, optimizer: torch.optim.Optimizer, batch: Batch, step: int, part: int
) -> StepOutput:
    """One optimiser step, in the order that `Method` documents."""
    progress = Progress(step, STEPS, 4)
    method.before_step(progress)
    embeddings = embed_in_parts(method, batch, part)
    output = method.objective(embeddings, replace(batch, views=()), FIRST)
    output.loss.backward()  # type: ignore[no-untyped-call]
    method.after_backward(progress)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(replace(progress, step=step + 1), output.carry)
    return output


def train(method: Method, part: int = BATCH, first: int = 0, state: Any = None) -> list[float]:
    groups = [{"params": [p for _, p in g.params]} for g in method.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.0)
    count = 3 if isinstance(method, SwAV) else 2
    return [
        optimizer_step(method, optimizer, make_batch(step, count), step, part).loss.item()
        for step in range(first, STEPS)
    ]


@pytest.mark.parametrize("cls", METHODS)
def test_trains(cls: type[Method]) -> None:
    method = build(cls)
    before = copy.deepcopy(method.encoder.state_dict())
    assert all(math.isfinite(loss) for loss in train(method))
    assert any(not torch.equal(v, before[n]) for n, v in method.encoder.state_dict().items())
    assert method.encoder(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)).shape == (2, WIDTH)


@pytest.mark.parametrize("part", [1, 5])
@pytest.mark.parametrize("cls", METHODS)
def test_micro_batches_are_exact(cls: type[Method], part: int) -> None:
    """Same losses and the same final state, teacher and queue included, for any split."""
    whole, parts = build(cls), build(cls)
    assert train(parts, part) == pytest.approx(train(whole), rel=1e-10)
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), parts.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("cls", METHODS)
def test_cached_gradients_equal_the_direct_ones(cls: type[Method]) -> None:
    """GradCache: graph-free embeddings, gradient of the objective, replay of each part."""
    direct, cached = build(cls), build(cls)
    batch = make_batch(0, 3 if cls is SwAV else 2)
    for method in (direct, cached):
        method.before_step(Progress(0, STEPS, 4))
    direct.objective(direct.embed(batch), batch, FIRST).loss.backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        embeddings = embed_in_parts(cached, batch, 5)
    leaves = {name: value.detach().requires_grad_() for name, value in embeddings.items()}
    cached.objective(leaves, replace(batch, views=()), FIRST).loss.backward()  # type: ignore[no-untyped-call]
    for start in range(0, BATCH, 5):
        rows = slice(start, start + 5)
        part = cached.embed(batch.select(rows))
        wanted = [(part[n], v.grad[rows]) for n, v in leaves.items() if v.grad is not None]
        used = [(value, gradient) for value, gradient in wanted if value.requires_grad]
        torch.autograd.backward([v for v, _ in used], [g for _, g in used])
    for (name, a), (_, b) in zip(direct.named_parameters(), cached.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("cls", METHODS)
def test_state_dict_is_complete(cls: type[Method]) -> None:
    """Stopping between steps and going on from the state dict changes nothing."""
    straight, restored = build(cls), build(cls)
    train(straight)
    half = build(cls)
    groups = [{"params": [p for _, p in g.params]} for g in half.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.0)
    count = 3 if cls is SwAV else 2
    for step in range(2):
        optimizer_step(half, optimizer, make_batch(step, count), step, BATCH)
    restored.load_state_dict(half.state_dict())
    train(restored, first=2)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_masks_follow_the_sample_and_not_its_place() -> None:
    method, batch = build(MAE), make_batch(0, 2)
    masked = method.embed(batch)["masked"]
    assert (masked.sum(dim=1) == 3).all()
    assert torch.equal(method.embed(batch.select(slice(4, 9)))["masked"], masked[4:9])
    assert len(masked.unique(dim=0)) > 1


def test_the_queue_never_holds_a_key_of_the_current_batch() -> None:
    method = build(MoCo)
    assert isinstance(method, MoCo)
    batch = make_batch(0, 2)
    output = method.objective(method.embed(batch), batch, FIRST)
    similarity = output.carry @ method.queue.features.T
    assert similarity.max() < 0.999
    method.after_step(Progress(1, STEPS, 4), output.carry)
    similarity = output.carry @ method.queue.features.T
    torch.testing.assert_close(similarity.amax(dim=1), torch.ones(BATCH, dtype=torch.float64))


def test_swav_prototypes_start_frozen_and_stay_normalised() -> None:
    method = build(SwAV)
    assert isinstance(method, SwAV)
    start = normalize(method.prototypes.weight.detach())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for step in range(2):
        optimizer_step(method, optimizer, make_batch(step, 3), step, BATCH)
    torch.testing.assert_close(method.prototypes.weight.detach(), start)
    optimizer_step(method, optimizer, make_batch(2, 3), 2, BATCH)
    assert not torch.allclose(method.prototypes.weight, start)
