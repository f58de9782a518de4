"""A small method and batches in float64, and an independent transformer: one image at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Backbone, Batch, RunFacts, ViewSpec, resolve_component
from sslkit.host.plugins import load_plugins
from sslkit.randomness import SampleRandom

SIDE, PATCH, BATCH = 32, 4, 2
GRID = SIDE // PATCH
FACTS = RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 10, 20, (ViewSpec(SIDE),))
SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
NETWORK = {
    "name": "timm",
    "model": "test_vit",
    "patch_size": PATCH,
    "pool": "avg",
    "normalize": "none",
    "model_args": {"depth": 2, "class_token": False, "fc_norm": False},
}


def make(network: dict[str, Any] | None = None, **fields: Any) -> Any:
    """The method in float64, moved off its start, where biases are 0 and the teacher is a copy."""
    registry = load_plugins().registry
    slot = resolve_component(registry, "method", {"name": "ijepa", "predictor": SMALL, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = {**NETWORK, **(network or {})}
        backbone: Backbone = resolve_component(registry, "backbone", block).build(
            channels=3, image_size=SIDE
        )
        method: nn.Module = slot.build(backbone, FACTS).double()
        with torch.no_grad():
            for name, parameter in method.named_parameters():
                if "pos_embed" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def make_batch(step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(FACTS.num_images, generator=generator)[:BATCH]
    images = torch.rand((BATCH, 3, SIDE, SIDE), generator=generator, dtype=torch.float64)
    return Batch((images,), indices, SampleRandom(0, "method", 0, indices))


# --- Written from the paper, token by token -------------------------------------------------------


def normed(x: Tensor, epsilon: float) -> Tensor:
    middle = x.mean(-1, keepdim=True)
    variance = ((x - middle) ** 2).mean(-1, keepdim=True)
    return (x - middle) / torch.sqrt(variance + epsilon)


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return normed(x, 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer_block(x: Tensor, w: dict[str, Tensor], heads: int) -> Tensor:
    """(n, D) -> (n, D). w: norm1, qkv, proj, norm2, fc1, fc2."""
    query, key, value = linear(layer_norm(x, w, "norm1"), w, "qkv").split(x.shape[1], dim=1)
    size, parts = x.shape[1] // heads, []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        scores = torch.exp(query[:, at] @ key[:, at].T / math.sqrt(size))
        parts.append(scores / scores.sum(1, keepdim=True) @ value[:, at])
    x = x + linear(torch.cat(parts, 1), w, "proj")
    inside = linear(layer_norm(x, w, "norm2"), w, "fc1")
    inside = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
    return x + linear(inside, w, "fc2")


def weights(parameters: dict[str, Tensor], prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    """The weights of a block under the names of `transformer_block`."""
    found = {}
    for mine, theirs in names.items():
        for kind in ("weight", "bias"):
            joint = "_" if theirs.endswith("in_proj") else "."
            found[f"{mine}.{kind}"] = parameters[f"{prefix}.{theirs}{joint}{kind}"]
    return found


TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
        "norm1": "norm1", "norm2": "norm2"}  # fmt: skip
TORCH = {"qkv": "self_attn.in_proj", "proj": "self_attn.out_proj", "fc1": "linear1",
         "fc2": "linear2", "norm1": "norm1", "norm2": "norm2"}  # fmt: skip


def encoded(parameters: dict[str, Tensor], prefix: str, image: Tensor, keep: list[int]) -> Tensor:
    """(n, D) of the patches of one image that are kept."""
    weight = parameters[f"{prefix}.patch_embed.proj.weight"]
    rows = []
    for number in keep:
        top, left = PATCH * (number // GRID), PATCH * (number % GRID)
        part = image[:, top : top + PATCH, left : left + PATCH]
        row = (weight * part).sum((1, 2, 3)) + parameters[f"{prefix}.patch_embed.proj.bias"]
        rows.append(row + parameters[f"{prefix}.pos_embed"][0, number])
    x = torch.stack(rows)
    depth = 1 + max(
        int(name.removeprefix(f"{prefix}.blocks.").split(".")[0])
        for name in parameters
        if name.startswith(f"{prefix}.blocks.")
    )
    for number in range(depth):
        x = transformer_block(x, weights(parameters, f"{prefix}.blocks.{number}", TIMM), 2)
    return layer_norm(
        x, {k: parameters[f"{prefix}.norm.{k[5:]}"] for k in ("norm.weight", "norm.bias")}, "norm"
    )


def position(number: int, width: int) -> Tensor:
    """Column, then row: sines and cosines of a quarter of the width each."""
    values = []
    for place in (number % GRID, number // GRID):
        angles = [place / 10000 ** (i / (width // 4)) for i in range(width // 4)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return torch.tensor(values, dtype=torch.float64)


def predicted(
    parameters: dict[str, Tensor], context: Tensor, shown: list[int], asked: list[int]
) -> Tensor:
    """(len(asked), D) from the tokens of a context, (n, D)."""
    own = {
        k.removeprefix("predictor."): v for k, v in parameters.items() if k.startswith("predictor.")
    }
    rows = [linear(context, own, "embed") + torch.stack([position(n, 16) for n in shown])]
    rows.append(torch.stack([own["mask_token"][0, 0] + position(n, 16) for n in asked]))
    x = torch.cat(rows)
    for number in range(SMALL["depth"]):
        x = transformer_block(x, weights(own, f"blocks.{number}", TORCH), SMALL["heads"])
    return linear(layer_norm(x, own, "norm"), own, "predict")[len(shown) :]


def loss_of(
    parameters: dict[str, Tensor], images: Tensor, regions: list[tuple[list[int], list[list[int]]]]
) -> Tensor:
    """The loss of images of which (shown patches, target blocks) are given, with loops."""
    errors = []
    for image, (shown, blocks) in zip(images, regions, strict=True):
        context = encoded(parameters, "backbone.model", image, shown)
        whole = encoded(parameters, "teacher.module.model", image, list(range(GRID * GRID)))
        whole = normed(whole.detach(), 1e-5)
        for block in blocks:
            made = predicted(parameters, context, shown, block)
            for row, number in zip(made, block, strict=True):
                gap = (row - whole[number]).abs()
                errors.append(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
    return torch.stack(errors).mean()
