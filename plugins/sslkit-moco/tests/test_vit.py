"""MoCo v3's initialisation of a Vision Transformer, and its frozen patch embedding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from moco_setup import FACTS, SmallNet, method_slot
from torch import nn

from sslkit.api import Backbone, Progress, ViewSpec, resolve_component
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.nn.positions import sine_cosine_positions

HEAD = {"name": "mlp", "hidden_dim": 16, "out_dim": 8}


def vit(**fields: Any) -> Backbone:
    block = {"name": "timm", "model": "test_vit", "patch_size": 8, "pool": "token", **fields}
    slot = resolve_component(load_plugins().registry, "backbone", block)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone: Backbone = slot.build(channels=3, image_size=32)
    return backbone


def moco(backbone: Backbone, **fields: Any) -> Any:
    slot = method_slot("moco_v3", projector=HEAD, predictor=HEAD, **fields)
    return slot.build(backbone, FACTS)


def test_initialisation() -> None:
    model = moco(vit(), vit_init=True).backbone.model
    assert not model.pos_embed.requires_grad
    assert model.pos_embed[0, 0].abs().max() == 0.0  # the class token has no position
    torch.testing.assert_close(model.pos_embed[0, 1:], sine_cosine_positions(4, 4, 64))
    weight = model.patch_embed.proj.weight
    bounds = [(weight, math.sqrt(6 / (3 * 8 * 8 + 64)))]
    block = model.blocks[0]
    bounds += [(block.attn.qkv.weight, math.sqrt(6 / (64 + 64)))]  # query, key and value apart
    bounds += [(block.mlp.fc1.weight, math.sqrt(6 / (64 + 192)))]
    for found, bound in bounds:
        assert 0.98 * bound < found.abs().max() <= bound
        assert found.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(bias.abs().max() == 0.0 for bias in biases)
    assert 0.0 < model.cls_token.abs().max() < 1e-5


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_embedding_stays_as_it_was(frozen: bool) -> None:
    method = moco(vit(), vit_init=True, freeze_patch_embedding=frozen, teacher_momentum=0.5)
    names = {name for group in method.param_groups() for name, _ in group.params}
    patch = {"backbone.model.patch_embed.proj.weight", "backbone.model.patch_embed.proj.bias"}
    assert patch <= set(dict(method.named_parameters()))
    assert bool(patch & names) != frozen
    assert "backbone.model.pos_embed" not in names
    start = method.backbone.model.patch_embed.proj.weight.clone()
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name in names:
                parameter.add_(0.1)
    method.before_step(Progress(0, 5, 5))
    for network in (method.backbone, method.teacher.module[0]):
        assert torch.equal(network.model.patch_embed.proj.weight, start) == frozen


def test_frozen_and_otherwise_as_given() -> None:
    """Without vit_init the weights that the backbone started from stay."""
    backbone = vit()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    moco(backbone, freeze_patch_embedding=True)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.model.pos_embed.requires_grad


def test_other_networks_are_refused() -> None:
    for field in ("vit_init", "freeze_patch_embedding"):
        with pytest.raises(RecipeError, match=rf"method\.{field}: .* no patch embedding"):
            moco(SmallNet(True), **{field: True})
    without = vit(model_args={"pos_embed": "none"})
    with pytest.raises(RecipeError, match=r"method\.vit_init: .* no learned position embedding"):
        moco(without, vit_init=True)


def test_it_runs_at_the_size_of_the_views() -> None:
    method = moco(vit(), vit_init=True)
    images = torch.rand(2, 3, 32, 32)
    assert method.backbone(images).shape == (2, 64)
    assert ViewSpec(32).size == 32
