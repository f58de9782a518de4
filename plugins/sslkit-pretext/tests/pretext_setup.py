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

SIDE, WIDTH, BATCH = 12, 6, 10
FIRST = Progress(0, 10, 5)


class SmallNet(Backbone):
    """A convolution, a normalisation without batch statistics, and a mean over positions."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.num_features = WIDTH
        self.preprocess = Preprocess(SIDE, SIDE, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        self.convolution = nn.Conv2d(3, WIDTH, 3)
        self.norm = nn.GroupNorm(2, WIDTH)
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(self.preprocess.std).view(3, 1, 1))

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.convolution((images - self.mean) / self.std)).tanh()
        return maps.mean(dim=(2, 3))


def facts(*views: ViewSpec) -> RunFacts:
    return RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 5, 10, views or (ViewSpec(SIDE),))


def method_slot(name: str, **fields: Any) -> Slot[Method]:
    return resolve_component(load_plugins().registry, "method", {"name": name, **fields})


def problems(name: str, given: RunFacts, **fields: Any) -> list[tuple[str, str]]:
    found = method_slot(name, **fields)
    return list(found.cls.problems(found.config, given))


def make_method(name: str, backbone: Backbone | None = None, **fields: Any) -> Any:
    """The method in float64, initialised the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method_slot(name, **fields).build(backbone or SmallNet(), facts()).double()


def make_batch(step: int = 0, size: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(60, generator=generator)[:size]
    view = torch.rand(size, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return Batch((view,), indices, SampleRandom(0, "method", 0, indices))


def objective(method: Method, batch: Batch, progress: Progress = FIRST) -> StepOutput:
    return method.objective(method.embed(batch), replace(batch, views=()), progress)


def in_parts(method: Method, batch: Batch, part: int) -> dict[str, Tensor]:
    """Embeddings of the batch, `part` images at a time."""
    slices = [slice(start, start + part) for start in range(0, len(batch), part)]
    parts = [method.embed(batch.select(rows)) for rows in slices]
    return {name: torch.cat([found[name] for found in parts]) for name in parts[0]}


def train(method: Method, batches: Iterator[Batch], lr: float = 0.3) -> Iterator[StepOutput]:
    """Steps of plain gradient descent, in the order that `Method` documents."""
    optimizer = torch.optim.SGD([p for g in method.param_groups() for _, p in g.params], lr=lr)
    for step, batch in enumerate(batches):
        progress = Progress(step, 1000, 5)
        method.before_step(progress)
        output = objective(method, batch, progress)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress.next(), output.carry)
        yield output
