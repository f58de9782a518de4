"""Small networks and batches, and a step as the engine takes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    Preprocess,
    Progress,
    RunFacts,
    Slot,
    StepOutput,
    ViewSpec,
    resolve_component,
)
from sslkit.host.plugins import load_plugins
from sslkit.randomness import SampleRandom

SIDE, WIDTH, BATCH, STEPS = 8, 6, 12, 5
LN_HEAD = {
    "name": "mlp", "hidden_dim": 10, "out_dim": 4, "hidden_norm": "ln", "output_norm": "none",
}  # fmt: skip
BN_HEAD = {**LN_HEAD, "hidden_norm": "bn"}
FACTS = RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 5, STEPS, (ViewSpec(SIDE), ViewSpec(SIDE)))


class SmallNet(Backbone):
    """A convolution with BatchNorm or GroupNorm, and a mean over positions."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__(ComponentConfig())
        self.num_features = WIDTH
        self.preprocess = Preprocess(SIDE, SIDE, "bilinear", (0.0,), (1.0,))
        norm = nn.BatchNorm2d(WIDTH) if batch_norm else nn.GroupNorm(2, WIDTH)
        self.net = nn.Sequential(nn.Conv2d(3, WIDTH, 3), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features.flatten(1)


def method_slot(name: str, **fields: Any) -> Slot[Method]:
    return resolve_component(load_plugins().registry, "method", {"name": name, **fields})


def build(name: str, backbone: Backbone, facts: RunFacts = FACTS, **fields: Any) -> Any:
    """A method in float64, initialised the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method_slot(name, **fields).build(backbone, facts).double()


def network(batch_norm: bool) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SmallNet(batch_norm)


def queue_moco(batch_norm: bool = False, facts: RunFacts = FACTS, **fields: Any) -> Any:
    """MoCo v2 with a small queue."""
    fields = {"queue_size": 20, "head": LN_HEAD, "bn_groups": 3, **fields}
    return build("moco_v2", network(batch_norm), facts, **fields)


def moco_v3(batch_norm: bool = False, **fields: Any) -> Any:
    head = BN_HEAD if batch_norm else LN_HEAD
    return build("moco_v3", network(batch_norm), **{"projector": head, "predictor": head, **fields})


def make_batch(step: int = 0, size: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(FACTS.num_images, generator=generator)[:size]
    shape = (size, 3, SIDE, SIDE)
    views = tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return Batch(views, indices, SampleRandom(0, "method", 0, indices))


def learnable_batches(epochs: int) -> Iterator[Batch]:
    """60 images, each of a colour of its own, which both views show under noise."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    colours = noise(FACTS.num_images, 3, 1, 1)
    for epoch in range(epochs):
        for indices in torch.randperm(FACTS.num_images, generator=generator).split(BATCH):
            views = tuple(colours[indices] + 0.1 * noise(BATCH, 3, SIDE, SIDE) for _ in range(2))
            yield Batch(views, indices, SampleRandom(0, "method", epoch, indices))


def in_parts(method: Method, batch: Batch, part: int) -> dict[str, Tensor]:
    """Embeddings of the batch, `part` images at a time."""
    slices = [slice(start, start + part) for start in range(0, len(batch), part)]
    parts = [method.embed(batch.select(rows)) for rows in slices]
    return {name: torch.cat([found[name] for found in parts]) for name in parts[0]}


def take_step(
    method: Method, optimizer: torch.optim.Optimizer, progress: Progress, batch: Batch
) -> StepOutput:
    """One optimiser step, in the order that `Method` documents."""
    method.before_step(progress)
    output = method.objective(method.embed(batch), replace(batch, views=()), Progress(0, 1, 1))
    output.loss.backward()
    method.after_backward(progress)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress.next(), output.carry)
    return output


def train(method: Method, steps: range, *, size: int = BATCH) -> Iterator[StepOutput]:
    """Steps on a new batch of `size` images each."""
    groups = [{"params": [p for _, p in group.params]} for group in method.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.3)
    for step in steps:
        progress = Progress(step, STEPS, FACTS.steps_per_epoch)
        yield take_step(method, optimizer, progress, make_batch(step, size))


def learn(method: Method, epochs: int = 24) -> float:
    """Trains on `learnable_batches`; the mean loss of the last epoch."""
    params = [p for group in method.param_groups() for _, p in group.params]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    total = epochs * FACTS.steps_per_epoch
    losses = [
        take_step(method, optimizer, Progress(step, total, FACTS.steps_per_epoch), batch).loss
        for step, batch in enumerate(learnable_batches(epochs))
    ]
    return torch.stack(losses[-FACTS.steps_per_epoch :]).mean().item()


def taught(method: Any) -> list[Tensor]:
    """The weights that the teacher follows."""
    return [p.detach().clone() for p in method.taught.parameters()]
