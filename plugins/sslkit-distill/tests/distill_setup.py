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

SIDE, WIDTH, BATCH, STEPS = 8, 6, 12, 5
LN_HEAD = {
    "name": "mlp",
    "hidden_dim": 10,
    "out_dim": 4,
    "hidden_norm": "ln",
    "output_norm": "none",
}
BN_HEAD = {**LN_HEAD, "hidden_norm": "bn"}
FACTS = RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 5, STEPS, (ViewSpec(SIDE), ViewSpec(SIDE)))

CROPS = (SIDE, SIDE, SIDE - 2, SIDE - 2, SIDE - 2)
"""Two global views and three local ones."""
CROP_FACTS = replace(
    FACTS, views=tuple(ViewSpec(side, "global" if side == SIDE else "local") for side in CROPS)
)
DINO_HEAD = {"name": "dino", "out_dim": 7, "hidden_dim": 10, "bottleneck_dim": 5}


class SmallNet(Backbone):
    """A convolution with BatchNorm or none, a LayerNorm, and a mean over positions."""

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


def make_method(name: str, batch_norm: bool = False, facts: RunFacts = FACTS, **fields: Any) -> Any:
    """The method in float64, initialised the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method_slot(name, **fields).build(SmallNet(batch_norm), facts).double()


def make_simsiam(batch_norm: bool = False, **fields: Any) -> Any:
    head = BN_HEAD if batch_norm else LN_HEAD
    return make_method("simsiam", batch_norm, **{"projector": head, "predictor": head, **fields})


def make_dino(batch_norm: bool = False, facts: RunFacts = CROP_FACTS, **fields: Any) -> Any:
    head = {**DINO_HEAD, "batch_norm": batch_norm}
    return make_method("dino", batch_norm, facts, **{"head": head, **fields})


def make_batch(step: int = 0, sides: Sequence[int] = (SIDE, SIDE)) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(FACTS.num_images, generator=generator)[:BATCH]
    views = tuple(
        torch.rand((BATCH, 3, side, side), generator=generator, dtype=torch.float64)
        for side in sides
    )
    return Batch(views, indices, SampleRandom(0, "method", 0, indices))


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
    for group in method.param_groups():
        for _, parameter in group.params:
            if group.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameter, group.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress.next(), output.carry)
    return output


def train(method: Method, steps: range, lr: float = 0.3, **batch: Any) -> Iterator[StepOutput]:
    """Steps of SGD, on another batch each. batch: arguments of `make_batch`."""
    groups = [{"params": [p for _, p in group.params]} for group in method.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=lr)
    for step in steps:
        progress = Progress(step, STEPS, FACTS.steps_per_epoch)
        yield take_step(method, optimizer, progress, make_batch(step, **batch))


def problems(name: str, facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot(name, **fields)
    return list(slot.cls.problems(slot.config, facts))
