"""Small networks and batches, and a step as the engine takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

SIDE, WIDTH, BATCH, STEPS = 8, 6, 12, 10
LN_HEAD = {
    "name": "mlp", "hidden_dim": 10, "out_dim": 4, "hidden_norm": "ln", "output_norm": "none",
}  # fmt: skip
BN_HEAD = {**LN_HEAD, "hidden_norm": "bn"}
TWO_VIEWS = (ViewSpec(SIDE), ViewSpec(SIDE))
FACTS = RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 5, STEPS, TWO_VIEWS)


class SmallNet(Backbone):
    """A convolution with BatchNorm or GroupNorm, and a mean over positions: any size of image."""

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


def build(name: str, facts: RunFacts = FACTS, *, batch_norm: bool = False, **fields: Any) -> Any:
    """A method in float64, initialised the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method_slot(name, **fields).build(SmallNet(batch_norm), facts).double()


def make_batch(step: int = 0, size: int = BATCH, views: Sequence[ViewSpec] = TWO_VIEWS) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(FACTS.num_images, generator=generator)[:size]

    def images(side: int) -> Tensor:
        return torch.rand(size, 3, side, side, generator=generator, dtype=torch.float64)

    seen = tuple(images(view.size) for view in views)
    return Batch(seen, indices, SampleRandom(0, "method", 0, indices))


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
    output = method.objective(method.embed(batch), replace(batch, views=()), progress)
    output.loss.backward()
    method.after_backward(progress)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress.next(), output.carry)
    return output


def train(
    method: Method, steps: range, *, size: int = BATCH, views: Sequence[ViewSpec] = TWO_VIEWS
) -> Iterator[StepOutput]:
    """Steps of `STEPS` in all, 5 an epoch, on a new batch of `size` images each."""
    groups = [{"params": [p for _, p in group.params]} for group in method.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.3)
    for step in steps:
        progress = Progress(step, STEPS, FACTS.steps_per_epoch)
        yield take_step(method, optimizer, progress, make_batch(step, size, views))
