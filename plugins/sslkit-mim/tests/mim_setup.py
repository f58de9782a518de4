"""Small transformers and batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Backbone, Batch, RunFacts, ViewSpec, resolve_component
from sslkit.host.plugins import load_plugins
from sslkit.randomness import SampleRandom

SIDE, PATCH, BATCH, WIDTH = 16, 4, 6, 64
PATCHES, VALUES = (SIDE // PATCH) ** 2, 3 * PATCH * PATCH
FACTS = RunFacts(60, 3, (SIDE, SIDE), None, BATCH, 10, 20, (ViewSpec(SIDE),))
SMALL = {"width": 16, "depth": 2, "heads": 2}


def vit(side: int = SIDE, **fields: Any) -> Backbone:
    block = {"name": "timm", "model": "test_vit", "patch_size": PATCH, "pool": "token", **fields}
    backbone: Backbone = resolve_component(load_plugins().registry, "backbone", block).build(
        channels=3, image_size=side
    )
    return backbone


def make(name: str, backbone: dict[str, Any] | None = None, **fields: Any) -> Any:
    """The method in float64 with weights that are not those of the start, where biases are 0."""
    slot = resolve_component(load_plugins().registry, "method", {"name": name, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method: nn.Module = slot.build(vit(**(backbone or {})), FACTS).double()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def make_batch(step: int = 0, views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(FACTS.num_images, generator=generator)[:BATCH]
    shape = (BATCH, 3, SIDE, SIDE)
    images = tuple(
        torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(views)
    )
    return Batch(images, indices, SampleRandom(0, "method", 0, indices))


# --- An independent transformer: one image at a time, head by head -------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    middle = x.mean(-1, keepdim=True)
    variance = ((x - middle) ** 2).mean(-1, keepdim=True)
    return (x - middle) / torch.sqrt(variance + 1e-6) * weight + bias


def block(x: Tensor, w: dict[str, Tensor], heads: int) -> Tensor:
    """(n, D) -> (n, D). w: norm1, qkv, proj, norm2, fc1, fc2 with `.weight` and `.bias`."""
    inside = layer_norm(x, w["norm1.weight"], w["norm1.bias"])
    query, key, value = (inside @ w["qkv.weight"].T + w["qkv.bias"]).split(x.shape[1], dim=1)
    size, parts = x.shape[1] // heads, []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        scores = torch.exp(query[:, at] @ key[:, at].T / size**0.5)
        parts.append(scores / scores.sum(1, keepdim=True) @ value[:, at])
    x = x + torch.cat(parts, 1) @ w["proj.weight"].T + w["proj.bias"]
    inside = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
    inside = inside @ w["fc1.weight"].T + w["fc1.bias"]
    inside = inside * 0.5 * (1 + torch.erf(inside / 2**0.5))
    return x + inside @ w["fc2.weight"].T + w["fc2.bias"]


def pixels_of(image: Tensor) -> Tensor:
    """(C, S, S) -> (N, p * p * C), with loops."""
    rows = []
    for top in range(0, SIDE, PATCH):
        for left in range(0, SIDE, PATCH):
            part = [
                image[channel, top + y, left + x]
                for y in range(PATCH)
                for x in range(PATCH)
                for channel in range(3)
            ]
            rows.append(torch.stack(part))
    return torch.stack(rows)


def encoder_block(parameters: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The weights of a block of timm's, under the names of `block`."""
    names = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    names |= {"norm1": "norm1", "norm2": "norm2"}
    return {
        f"{mine}.{kind}": parameters[f"backbone.model.blocks.{number}.{theirs}.{kind}"]
        for mine, theirs in names.items()
        for kind in ("weight", "bias")
    }


def encoded(
    parameters: dict[str, Tensor],
    image: Tensor,
    keep: list[int],
    masked: dict[int, Tensor] | None = None,
    outputs: list[Tensor] | None = None,
) -> Tensor:
    """(1 + n, D) of one normalised image behind the final norm. masked: patch -> its embedding.
    outputs: takes what each block gives."""
    prefix = "backbone.model."
    weight = parameters[f"{prefix}patch_embed.proj.weight"]
    positions = parameters[f"{prefix}pos_embed"][0]
    tokens = [parameters[f"{prefix}cls_token"][0, 0] + positions[0]]
    for number in keep:
        top, left = PATCH * (number // (SIDE // PATCH)), PATCH * (number % (SIDE // PATCH))
        part = image[:, top : top + PATCH, left : left + PATCH]
        row = (weight * part).sum((1, 2, 3)) + parameters[f"{prefix}patch_embed.proj.bias"]
        row = (masked or {}).get(number, row)
        tokens.append(row + positions[1 + number])
    found = torch.stack(tokens)
    depth = 1 + max(int(name.split(".")[3]) for name in parameters if ".model.blocks." in name)
    for number in range(depth):
        found = block(found, encoder_block(parameters, number), 2)
        if outputs is not None:
            outputs.append(found)
    return layer_norm(found, parameters[f"{prefix}norm.weight"], parameters[f"{prefix}norm.bias"])
