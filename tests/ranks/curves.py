"""Loss curves in float64: losses, gradients of the first step and the state at the end, for every
method with BatchNorm and without, whole and in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.api import Batch, ComponentConfig, Slot
from sslkit.engine.display import Silent
from sslkit.engine.step import train_step
from sslkit.engine.training import Training
from sslkit.experiment.build import build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.parallel.world import World
from sslkit.recipe import load_recipe
from sslkit.runs.folder import RunFolder, held_by_first
from tests.ranks.sketches import SKETCHES

RECIPE = """\
name: ranks
data: {name: synthetic, num_train: 96, num_test: 16, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
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
LAYER_NORM = ("augmentation.size=32", "backbone={name: timm, model: test_vit, patch_size: 8}")

METHODS = {
    "simclr": "{{name: simclr, head: {head}}}",
    "byol": "{{name: byol, projector: {head}, predictor: {head}}}",
    "moco_v1": "{{name: moco_v1, queue_size: 48}}",
    "moco_v2": "{{name: moco_v2, queue_size: 48, head: {head}, bn_groups: 4, symmetric: true}}",
    "moco_v3": "{{name: moco_v3, projector: {head}, predictor: {head}}}",
    **dict.fromkeys(SKETCHES, "sketch"),
}


def cases() -> Iterator[tuple[str, str, list[str]]]:
    """Name, method, overrides: every method with BatchNorm and without, whole and in parts."""
    for method, block in METHODS.items():
        for norm in ("batch", "layer"):
            for parts in ("whole", "parts"):
                overrides = list(LAYER_NORM) if norm == "layer" else []
                head = LN_HEAD if norm == "layer" else BN_HEAD
                if block != "sketch":
                    overrides.append(f"method={block.format(head=head)}")
                if method == "moco_v1":
                    overrides.append("method.bn_groups=" + ("4" if norm == "batch" else "1"))
                if parts == "parts":
                    overrides.append("train.micro_batch_size=8")
                yield f"{method}-{norm}-{parts}", method, overrides


def make(folder: RunFolder, method: str, overrides: list[str], world: World) -> Training:
    """Training in float64."""
    path = folder.path.parent / "ranks.yaml"
    recipe = resolve(load_recipe(path, overrides))
    if method in SKETCHES:
        slot = Slot(SKETCHES[method], method, ComponentConfig(), "tests", "1")
        recipe = recipe.model_copy(update={"method": slot})
    t = build(recipe, check(recipe), folder, Silent(), world).training
    t.method.double().train()
    return t


def doubled(batch: Batch) -> Batch:
    return replace(batch, views=tuple(view.double() for view in batch.views))


def curve(t: Training, steps: int) -> dict[str, Any]:
    """Losses, the gradient of the first step, the state after the last."""
    losses: list[Tensor] = []
    first: dict[str, Tensor] = {}
    step = t.optimization.step

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
            output, _ = train_step(t, doubled(batch))
            losses.append(output.loss.detach().clone())
            t.progress = t.progress.next()
            if t.progress.step == steps:
                break
    return {"losses": torch.stack(losses), "gradient": first, "state": state(t.method.state_dict())}


def state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def curves(world: World, folder: Path, method: str, steps: int) -> dict[str, dict[str, Any]]:
    """Case -> its curve."""
    with held_by_first(world, lambda: begin(folder)) as run:
        return {
            name: curve(make(run, method, overrides, world), steps)
            for name, its_method, overrides in cases()
            if its_method == method
        }


def begin(folder: Path) -> RunFolder:
    (folder / "ranks.yaml").write_text(RECIPE)
    return RunFolder.create(folder, "ranks")
