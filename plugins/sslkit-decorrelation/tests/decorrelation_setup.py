"""Small networks and batches, and steps as the engine takes them, beside steps written out here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Loss,
    LossInput,
    Method,
    Preprocess,
    Progress,
    RunFacts,
    Slot,
    ViewSpec,
    resolve_component,
)
from sslkit.host.plugins import load_plugins
from sslkit.randomness import SampleRandom

SIDE, WIDTH, BATCH, STEPS = 8, 6, 12, 5
HEAD = {"name": "mlp", "hidden_dim": 10, "out_dim": 4, "output_norm": "none"}
FACTS = RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 5, STEPS, (ViewSpec(SIDE), ViewSpec(SIDE)))
FIRST = Progress(0, STEPS, 5)
LossOfViews = Callable[[Sequence[Tensor]], Tensor]


class SmallNet(Backbone):
    """A convolution with BatchNorm and a mean over positions."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.num_features = WIDTH
        self.preprocess = Preprocess(SIDE, SIDE, "bilinear", (0.0,), (1.0,))
        layers = (nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.Tanh())
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features.flatten(1)


def method_slot(name: str, **fields: Any) -> Slot[Method]:
    return resolve_component(load_plugins().registry, "method", {"name": name, **fields})


def make_method(name: str, facts: RunFacts = FACTS, **fields: Any) -> Any:
    """The method in float64, initialised the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        slot = method_slot(name, **{"projector": HEAD, **fields})
        return slot.build(SmallNet(), facts).double()


def make_loss(name: str, **fields: Any) -> Loss:
    slot = resolve_component(load_plugins().registry, "loss", {"name": name, **fields})
    loss: Loss = slot.build()
    return loss.double()


def of_views(loss: Loss, *views: Tensor, step: int = 0, seed: int = 0) -> Tensor:
    """The loss of views (B, D), in a step of a run."""
    random = SampleRandom(seed, "method", 0, torch.arange(len(views[0])))
    progress = replace(FIRST, step=step)
    found: Tensor = loss(LossInput(views, random=random, progress=progress))
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_batch(step: int = 0, facts: RunFacts = FACTS) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(facts.num_images, generator=generator)[:BATCH]
    views = tuple(
        torch.rand((BATCH, 3, *view.sides), generator=generator, dtype=torch.float64)
        for view in facts.views
    )
    return Batch(views, indices, SampleRandom(0, "method", 0, indices))


def take_steps(method: Method, count: int, facts: RunFacts = FACTS, start: int = 0) -> list[float]:
    """Steps of plain gradient descent, in the order that `Method` documents; the losses."""
    groups = [
        {"params": [p for _, p in group.params], "lr": 0.1 * group.lr_scale}
        for group in method.param_groups()
    ]
    optimizer = torch.optim.SGD(groups)
    losses = []
    for step in range(start, count):
        batch, progress = make_batch(step, facts), replace(FIRST, step=step)
        method.before_step(progress)
        output = method.objective(method.embed(batch), replace(batch, views=()), progress)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for loss, given in output.losses:
                loss.after_step(progress.next(), [given.detach()])
        method.after_step(progress.next(), output.carry)
        losses.append(float(output.loss.detach()))
    return losses


def steps_written_out(
    method: Any, count: int, loss: LossOfViews, bias_lr_scale: float = 1.0
) -> tuple[list[float], Mapping[str, Tensor]]:
    """The same steps with this loss of projections, and the networks of a copy of the method, each
    view in a pass of its own: losses, and the state of the networks after them."""
    networks = nn.ModuleDict({
        "backbone": copy.deepcopy(method.backbone), "projector": copy.deepcopy(method.projector)
    })  # fmt: skip
    losses = []
    for step in range(count):
        views = [networks["projector"](networks["backbone"](v)) for v in make_batch(step).views]
        found = loss(views)
        networks.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in networks.parameters():
                scale = bias_lr_scale if parameter.ndim < 2 else 1.0
                parameter -= 0.1 * scale * parameter.grad  # type: ignore[operator]
        losses.append(float(found.detach()))
    return losses, networks.state_dict()
