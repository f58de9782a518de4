"""Loss curves in float64: losses, gradients of the first step and the state at the end, for every
method with BatchNorm and without, whole and in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sslkit.api import Batch, Component, Slot
from sslkit.engine.display import Silent
from sslkit.engine.step import train_step
from sslkit.engine.training import Training
from sslkit.experiment.build import build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.parallel.world import World
from sslkit.recipe import load_recipe
from sslkit.runs.folder import RunFolder, held_by_first
from tests.ranks.networks import ConvNet
from tests.ranks.sketches import SKETCHES

RECIPE = """\
name: ranks
data: {name: synthetic, num_train: 96, num_test: 16, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.0, blur: false}
backbone: {name: timm, model: test_resnet}
method: {name: simclr, head: {name: mlp, hidden_dim: 16, out_dim: 8}}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01, eps: 1e-4}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 10, batch_size: 16, device: cpu, loader_threads: 0, log_every_steps: 2}
evaluate: []
tracking: {name: none}
"""
"""The eps is above rounding errors, which AdamW makes steps of where a gradient is zero, as that
of a bias before a normalisation is."""
LN_HEAD = "{name: mlp, hidden_dim: 16, out_dim: 8, hidden_norm: none, output_norm: none}"
BN_HEAD = "{name: mlp, hidden_dim: 16, out_dim: 8}"
BYOL_HEAD = "{name: mlp, hidden_dim: 16, out_dim: 8, output_norm: none}"
LAYER_NORM = (
    "backbone={name: timm, model: test_vit, patch_size: 4, model_args: {embed_dim: 16, depth: 2}}",
)

Tensors = dict[str, Tensor]
Curve = dict[str, Any]
"""`losses` (steps,), `gradient` and `state`: name -> tensor."""

METHODS = {
    "simclr": "{{name: simclr, head: {head}}}",
    "byol": "{{name: byol, projector: {head}, predictor: {head}}}",
    "moco_v1": "{{name: moco_v1, queue_size: 48}}",
    "moco_v2": "{{name: moco_v2, queue_size: 48, head: {head}, bn_groups: 4, symmetric: true}}",
    "moco_v3": "{{name: moco_v3, projector: {head}, predictor: {head}}}",
    **dict.fromkeys(SKETCHES, "sketch"),
}
IN_SMALL_STEPS = ("moco_v2", "wholebatch", "dividedbatch")
"""What divides by the deviation of few or of similar images, which makes rounding errors grow with
every step: 100 times as far in 50 of the size of the others'."""


def cases() -> Iterator[tuple[str, str, list[str]]]:
    """Name, method, overrides: every method with BatchNorm and without, whole and in parts."""
    for method, block in METHODS.items():
        for norm in ("batch", "layer"):
            for parts in ("whole", "parts"):
                overrides = list(LAYER_NORM) if norm == "layer" else []
                head = BYOL_HEAD if method == "byol" else BN_HEAD
                head = LN_HEAD if norm == "layer" else head
                if block != "sketch":
                    overrides.append(f"method={block.format(head=head)}")
                if method == "moco_v1":
                    overrides.append("method.bn_groups=" + ("4" if norm == "batch" else "1"))
                if method in IN_SMALL_STEPS:
                    overrides.append("optimizer.lr=3e-4")
                if parts == "parts":
                    overrides.append("train.micro_batch_size=8")
                yield f"{method}-{norm}-{parts}", method, overrides


def make(
    folder: RunFolder,
    method: str,
    overrides: list[str],
    world: World,
    dtype: torch.dtype = torch.float64,
    slots: Mapping[str, Slot[Any]] = MappingProxyType({}),
) -> Training:
    """Training in numbers of this type, from weights that are drawn in float32.

    slots: block of the recipe -> the component that it names, where no recipe can."""
    given: dict[str, Slot[Any]] = {}
    if not any(override.startswith("backbone") for override in overrides):
        given["backbone"] = slot(ConvNet)
    if method in SKETCHES:
        given["method"] = slot(SKETCHES[method])
    recipe = load_recipe(folder.path.parent / "ranks.yaml", overrides)
    recipe = resolve(recipe.model_copy(update={**given, **slots}))
    t = build(recipe, check(recipe), folder, Silent(), world).training
    t.method.to(dtype).train()
    return t


def slot(cls: type[Component], **fields: Any) -> Slot[Any]:
    """A component of the tests, as a recipe would name it."""
    return Slot(cls, cls.__name__.lower(), cls.Config(**fields), "tests", "1")


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    return replace(batch, views=tuple(view.to(dtype) for view in batch.views))


def doubled(batch: Batch) -> Batch:
    return cast(batch, torch.float64)


def curve(t: Training, steps: int) -> Curve:
    """Losses, the gradient of the first step, the state after the last."""
    losses: list[Tensor] = []
    first: Tensors = {}
    step = t.optimization.step
    dtype = next(t.method.parameters()).dtype

    def noted_step() -> None:
        if not first:
            first.update(
                {n: p.grad.clone() for n, p in t.method.named_parameters() if p.grad is not None}
            )
        step()

    t.optimization.step = noted_step  # type: ignore[method-assign]
    while t.progress.step < steps:
        epoch, start = divmod(t.progress.step, t.progress.steps_per_epoch)
        for batch in t.loader.epoch(epoch, start):
            t.optimization.set_rules(t.progress)
            output, _ = train_step(t, cast(batch, dtype))
            losses.append(output.loss.detach().clone())
            t.progress = t.progress.next()
            if t.progress.step == steps:
                break
    return {"losses": torch.stack(losses), "gradient": first, "state": state(t.method.state_dict())}


def state(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: value.detach().clone() for name, value in tensors.items()}


def curves(world: World, folder: Path, method: str, steps: int) -> dict[str, dict[str, Curve]]:
    """Case -> its curve in float64, and the first step in float32."""
    with held_by_first(world, lambda: begin(folder)) as run:
        return {
            name: {
                "double": curve(make(run, method, overrides, world), steps),
                "single": curve(make(run, method, overrides, world, torch.float32), 1),
            }
            for name, its_method, overrides in cases()
            if its_method == method
        }


def begin(folder: Path) -> RunFolder:
    (folder / "ranks.yaml").write_text(RECIPE)
    return RunFolder.create(folder, "ranks")
