"""A backbone with tokens that is small enough to be written out by hand, and iBOT and DINOv2 on it
written out: loops, float64, no code of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from distill_setup import FACTS, SIDE, WIDTH, make_batch, method_slot
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    ComponentConfig,
    Method,
    Preprocess,
    Progress,
    RunFacts,
    StepOutput,
    TokenLayout,
    Tokens,
    ViewSpec,
)

PATCH, GRID = 2, SIDE // 2
SIDES = (SIDE, SIDE, SIDE - 4, SIDE - 4)
"""Two global views of 16 patches, two local ones of 4."""
TOKEN_FACTS: RunFacts = replace(
    FACTS, views=tuple(ViewSpec(side, "global" if side == SIDE else "local") for side in SIDES)
)
HEAD = {"name": "dino", "out_dim": 7, "hidden_dim": 10, "bottleneck_dim": 5}
MASKS = {"min_block": 2}


class TokenNet(Backbone):
    """x = [class, W patch + b or the mask token] + positions; tanh(x + A mean(x))."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.num_features = WIDTH
        self.preprocess = Preprocess(SIDE, SIDE, "bilinear", (0.0,), (1.0,))
        self.token_layout = TokenLayout((PATCH, PATCH), WIDTH, 1, True, 1, False, True)
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.3 * torch.randn(1, GRID**2 + 1, WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.seen: list[Tensor | None] = []
        """What was masked in each call of `tokens`."""

    def tokens(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        lengths: Tensor | None = None,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        blocks: Sequence[int] = (),
    ) -> Tokens:
        self.seen.append(masked)
        patches = self.embed(images).flatten(2).transpose(1, 2)
        if masked is not None and mask_token is not None:
            patches = torch.where(masked[..., None], mask_token, patches)
        x = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1)
        x = x + self.positions[:, : x.shape[1]]
        x = torch.tanh(x + self.mix(x.mean(dim=1, keepdim=True)))
        return Tokens(x[:, :1], x[:, 1:])

    def pool_tokens(self, tokens: Tokens) -> Tensor:
        return tokens.prefix[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        return self.pool_tokens(self.tokens(images))


def make(name: str, facts: RunFacts = TOKEN_FACTS, **fields: Any) -> Any:
    """The method in float64 on a TokenNet, initialised the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        slot = method_slot(name, **{"head": HEAD, **MASKS, **fields})
        return slot.build(TokenNet(), facts).double()


Targets = Callable[[list[Tensor], Tensor, float], list[Tensor]]
"""Scores of the teacher, a centre and a temperature, to probabilities."""


def centred(scores: list[Tensor], center: Tensor, tau: float) -> list[Tensor]:
    found = [torch.exp((score - center) / tau) for score in scores]
    return [p / p.sum() for p in found]


def balanced(scores: list[Tensor], center: Tensor, tau: float) -> list[Tensor]:
    """Sinkhorn-Knopp, as its papers write it: columns are images."""
    if not scores:
        return []
    q = torch.exp(torch.stack(scores).T / tau)
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return list((q * q.shape[1]).T)


class Reference:
    """Student and teacher of `make`, the mask token, both centres, and SGD.

    weights: of the losses of class tokens, of patches, and of KoLeo."""

    def __init__(
        self,
        state: dict[str, Tensor],
        weights: tuple[float, float, float],
        momenta: tuple[float, float] = (1.0, 1.0),
        targets: Targets = centred,
    ) -> None:
        own = ("backbone.", "head.", "patch_head.", "mask_token")
        self.student = {
            name: value.clone().requires_grad_()
            for name, value in state.items()
            if name.startswith(own)
        }
        self.teacher = {name: value.detach().clone() for name, value in self.student.items()}
        shared = not any(name.startswith("patch_head.") for name in state)
        self.heads = ("head", "head" if shared else "patch_head")
        self.centers = [torch.zeros(7, dtype=torch.float64) for _ in self.heads]
        self.weights, self.momenta, self.targets = weights, momenta, targets
        self.unmasked = 0

    @staticmethod
    def tokens(w: dict[str, Tensor], image: Tensor, masked: Tensor | None) -> list[Tensor]:
        """Class token, then patches row by row."""
        kernel = w["backbone.embed.weight"].flatten(1)
        x = [w["backbone.first"][0, 0]]
        side = image.shape[-1] // PATCH
        for n in range(side * side):
            top, left = PATCH * (n // side), PATCH * (n % side)
            pixels = image[:, top : top + PATCH, left : left + PATCH].flatten()
            hidden = masked is not None and bool(masked[n])
            token = w["mask_token"][0, 0] if hidden else kernel @ pixels + w["backbone.embed.bias"]
            x.append(token)
        x = [each + w["backbone.positions"][0, i] for i, each in enumerate(x)]
        mean = sum(x[1:], x[0]) / len(x)
        return [torch.tanh(each + w["backbone.mix.weight"] @ mean) for each in x]

    @staticmethod
    def scores(w: dict[str, Tensor], head: str, x: Tensor) -> Tensor:
        for layer in (0, 1):
            x = w[f"{head}.layers.{layer}.0.weight"] @ x + w[f"{head}.layers.{layer}.0.bias"]
            x = x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))  # GELU
        x = w[f"{head}.layers.2.0.weight"] @ x + w[f"{head}.layers.2.0.bias"]
        rows = w[f"{head}.layers.3.weight"]
        cosines = torch.stack([(x @ row) / x.norm() / row.norm() for row in rows])
        lengths = w.get(f"{head}.layers.3.lengths")
        return cosines if lengths is None else lengths[:, 0] * cosines

    def losses(
        self, views: tuple[Tensor, ...], masked: Tensor, taus: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of class tokens, of patches, and the sum of KoLeo over both global views."""
        images, seen = range(len(views[0])), (0, 1)
        student = {
            (i, v): self.tokens(self.student, view[i], masked[i, v] if v in seen else None)
            for i in images
            for v, view in enumerate(views)
        }
        teacher = {
            (i, v): self.tokens(self.teacher, views[v][i], None) for i in images for v in seen
        }
        hidden = [(i, v, n) for i, v in teacher for n in range(GRID**2) if masked[i, v, n]]
        self.found = (
            [self.scores(self.teacher, "head", tokens[0]) for tokens in teacher.values()],
            [self.scores(self.teacher, self.heads[1], teacher[i, v][1 + n]) for i, v, n in hidden],
        )
        whole = self.targets(self.found[0], self.centers[0], taus[0])
        parts = self.targets(self.found[1], self.centers[1], taus[1])
        terms = [
            self.cross_entropy(target, "head", student[i, s][0])
            for (i, t), target in zip(teacher, whole, strict=True)
            for s in range(len(views))
            if s != t
        ]
        patches = torch.zeros((), dtype=torch.float64)
        for (i, v, n), target in zip(hidden, parts, strict=True):
            term = self.cross_entropy(target, self.heads[1], student[i, v][1 + n])
            patches = patches + term / masked[i, v].sum() / len(teacher)
        self.unmasked += sum(not masked[i, v].any() for i, v in teacher)
        spread = [self.koleo([student[i, v][0] for i in images]) for v in seen]
        return torch.stack(terms).mean(), patches, spread[0] + spread[1]

    def cross_entropy(self, target: Tensor, head: str, token: Tensor) -> Tensor:
        q = torch.exp(self.scores(self.student, head, token) / 0.1)
        return -(target * torch.log(q / q.sum())).sum()

    @staticmethod
    def koleo(rows: list[Tensor]) -> Tensor:
        units = [row / row.norm() for row in rows]
        nearest = [
            torch.stack([(a - b + 1e-8).norm() for j, b in enumerate(units) if j != i]).min()
            for i, a in enumerate(units)
        ]
        return -torch.stack([(distance + 1e-8).log() for distance in nearest]).mean()

    def step(self, views: tuple[Tensor, ...], masked: Tensor, step: int) -> tuple[float, ...]:
        progress = min(step / 2 / 2.0, 1.0)
        taus = (0.04 + 0.03 * progress, 0.05 + 0.01 * progress)
        losses = self.losses(views, masked, taus)
        sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True)).backward()
        with torch.no_grad():
            for name, weight in self.student.items():
                frozen = step < 2 and ".layers.3." in name
                if weight.grad is not None and not frozen:
                    weight -= 0.3 * weight.grad
                weight.grad = None
            for each, momentum in enumerate(self.momenta):
                if self.found[each]:
                    mean = torch.stack(self.found[each]).mean(0).detach()
                    self.centers[each] = momentum * self.centers[each] + (1 - momentum) * mean
            m = 1 - (1 - 0.9) * (math.cos(math.pi * step / 6) + 1) / 2
            for name, weight in self.student.items():
                self.teacher[name] = m * self.teacher[name] + (1 - m) * weight
        return tuple(loss.item() for loss in losses)

    def check(self, method: Method) -> None:
        """Holds the weights of student and teacher to these."""
        state = method.state_dict()
        assert state["mask_token"].abs().max() > 0.0
        for name, weight in self.student.items():
            torch.testing.assert_close(state[name], weight.detach(), rtol=1e-7, atol=1e-10)
            if name != "mask_token":  # the teacher sees no masked patch
                part, _, rest = name.partition(".")
                number = ("backbone", "head", "patch_head").index(part)
                mine = state[f"teacher.module.{number}.{rest}"]
                torch.testing.assert_close(mine, self.teacher[name], rtol=1e-7, atol=1e-10)


WARM = {
    "teacher_temperature": {"name": "linear", "start": 0.04, "end": 0.07, "epochs": 2.0},
    "patch_teacher_temperature": {"name": "linear", "start": 0.05, "end": 0.06, "epochs": 2.0},
    "teacher_momentum": {"name": "cosine", "start": 0.9, "end": 1.0},
}
"""The schedules that `Reference` has."""


def steps_of(
    method: Any, reference: Reference, steps: int
) -> Iterator[tuple[StepOutput, tuple[float, ...]]]:
    """Steps of SGD on three images each, in epochs of two, and the losses of the reference."""
    groups = [[p for _, p in group.params] for group in method.param_groups()]
    optimizer = torch.optim.SGD([p for group in groups for p in group], lr=0.3)
    for step in range(steps):
        progress = Progress(step, 6, 2)
        batch = make_batch(step, sides=SIDES).select(slice(0, 3))
        method.before_step(progress)
        method.backbone.seen.clear()
        found = method.objective(method.embed(batch), replace(batch, views=()), progress)
        masked = method.backbone.seen[0].view(2, 3, -1).transpose(0, 1)
        found.loss.backward()
        method.after_backward(progress)
        optimizer.step()
        optimizer.zero_grad()
        yield found, reference.step(batch.views, masked, step)
        method.after_step(progress.next(), found.carry)
