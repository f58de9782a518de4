"""Where the class token looks: against attention computed by hand, and the picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

from sslkit.api import Backbone, Batch, NoTokensError, Progress, RunView, resolve_component
from sslkit.builtin.attention_maps import AttentionMaps, attention_figure
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.randomness import SampleRandom
from sslkit.testing import Check, checks
from sslkit.workflows.train import start

RECIPE = Path(__file__).with_name("class_token.yaml")
SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3}
VIT: dict[str, Any] = {"model": "vit_tiny_patch16_224", "patch_size": 8, "pool": "token"}


def make(model_args: dict[str, Any] | None = None, **fields: Any) -> Backbone:
    block = {"name": "timm", **VIT, **fields, "model_args": {**SMALL, **(model_args or {})}}
    torch.manual_seed(0)
    slot = resolve_component(load_plugins().registry, "backbone", block)
    backbone: Backbone = slot.build(channels=3, image_size=32)
    with torch.no_grad():  # so that attention is not nearly uniform
        for name, weights in backbone.named_parameters():
            if "qkv.weight" in name or "relative_position_bias_table" in name:
                weights.normal_(std=0.4)
    return backbone


def by_hand(backbone: Any, images: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of what the last block of an ordinary forward pass normalises."""
    attention = backbone.model.blocks[-1].attn
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        backbone.eval()(images)
    hook.remove()
    (x,) = seen
    if attention.qkv.bias is None:  # a Beit: queries alone have a bias
        q_bias, k_bias = attention.q_bias, torch.zeros(24)
    else:
        q_bias, k_bias, _ = attention.qkv.bias.split(24)
    q_weight, k_weight, _ = attention.qkv.weight.split(24)
    rows = []
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        q = x[:, 0] @ q_weight[part].T + q_bias[part]
        k = x @ k_weight[part].T + k_bias[part]
        if isinstance(getattr(attention, "q_norm", None), nn.LayerNorm):
            q, k = attention.q_norm(q), attention.k_norm(k)
        scores = torch.stack([k[image] @ q[image] for image in range(len(x))]) / 8**0.5
        if getattr(attention, "relative_position_bias_table", None) is not None:
            scores = scores + attention._get_rel_pos_bias()[0, head, 0]
        rows.append(torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        pytest.param({}, 1, id="vit"),
        pytest.param({"model_args": {"reg_tokens": 2}}, 3, id="registers"),
        pytest.param({"model_args": {"qk_norm": True}}, 1, id="normalised-queries"),
        pytest.param({"model": "beit_base_patch16_224"}, 1, id="relative-positions"),
        pytest.param({"model_args": {"depth": 1}}, 1, id="one-block"),
    ],
)
def test_it_is_what_the_last_block_computes(fields: dict[str, Any], prefix: int) -> None:
    """Though that attention is fused, and never there."""
    backbone: Any = make(**fields)
    images = torch.rand(2, 3, 32, 32)
    assert backbone.model.blocks[-1].attn.fused_attn
    found = backbone.class_attention(images)
    expected = by_hand(backbone, images).detach()
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(found, expected[..., prefix:], rtol=1e-4, atol=1e-6)
    assert found.sum(-1).max() < 1.0
    assert found.std(-1).min() > 0.005  # there is something to be seen


def test_nothing_changes_and_nothing_drops() -> None:
    backbone: Any = make(drop_path_rate=0.9).train()
    images = torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = backbone.class_attention(images)
    torch.testing.assert_close(found, backbone.class_attention(images), rtol=0, atol=0)
    assert all(module.training for module in backbone.modules())
    assert all(block.attn.fused_attn for block in backbone.model.blocks)
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_backbones_without_it_say_so() -> None:
    with pytest.raises(NoTokensError, match="has no class token whose attention"):
        make({"class_token": False}, pool="avg").class_attention(torch.rand(1, 3, 32, 32))
    block = {"name": "timm", "model": "test_resnet"}
    slot = resolve_component(load_plugins().registry, "backbone", block)
    with pytest.raises(NoTokensError, match="ResNet as it is set has no class token"):
        slot.build(channels=3, image_size=32).class_attention(torch.rand(1, 3, 32, 32))


class Looks:
    """A method whose encoder it is."""

    def __init__(self, encoder: Backbone) -> None:
        self.encoder = encoder


def test_the_figure_is_of_the_first_images_as_the_largest_view_has_them(tmp_path: Path) -> None:
    callback = AttentionMaps(AttentionMaps.Config(num_images=2))
    run, progress = RunView(tmp_path, "x", {}, {}), Progress(0, 1, 1)
    method: Any = Looks(make())
    callback.on_start(run, method)
    callback.on_evaluation(run, {}, progress)
    assert not (tmp_path / "figures").exists()  # nothing was seen yet
    indices = torch.arange(4)
    views = (torch.rand(4, 3, 16, 16), torch.rand(4, 3, 32, 32))
    batch = Batch(views, indices, SampleRandom(0, "method", 0, indices))
    callback.on_batch(run, batch, progress)
    assert callback._images is not None
    assert torch.equal(callback._images, views[1][:2])
    views[1].zero_()  # what is shown was cloned
    callback.on_evaluation(run, {}, progress)
    assert len(np.unique(imread(tmp_path / "figures" / "attention_maps.png"))) > 50


def test_a_figure_has_a_column_for_the_mean_and_each_head() -> None:
    maps = torch.rand(2, 3, 4, 5)
    figure = attention_figure(torch.rand(2, 3, 8, 10), maps, 2)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["image", "mean of 3 heads", "head 1", "head 2"]
    shown = [axis.images[0].get_array() for axis in figure.axes]
    np.testing.assert_allclose(shown[5], maps[1].mean(0), rtol=1e-6)  # the second row's mean
    np.testing.assert_allclose(shown[7], maps[1, 1], rtol=1e-6)


def test_other_backbones_are_refused_before_the_first_step() -> None:
    block = {"name": "timm", "model": "test_resnet"}
    slot = resolve_component(load_plugins().registry, "backbone", block)
    method: Any = Looks(slot.build(channels=3, image_size=32))
    with pytest.raises(RecipeError, match="attention_maps needs a backbone with a class token"):
        AttentionMaps(AttentionMaps.Config()).on_start(RunView(Path(), "x", {}, {}), method)


@pytest.mark.slow  # a run; the rest shows the parts
def test_a_run_saves_the_figure(tmp_path: Path) -> None:
    overrides = [
        "callbacks=[{name: attention_maps, num_images: 2}]",
        "evaluate=[{name: knn, k: 3}]",
        "train.max_steps=2",
        f"runs_dir={tmp_path}",
    ]
    found = start(RECIPE, overrides, display=Silent())
    assert imread(found.run_dir / "figures" / "attention_maps.png").shape[0] > 300


CHECKS = [
    pytest.param(check, id=str(check), marks=pytest.mark.slow)  # 5 s; the tests above are fast
    for check in checks("callback:attention_maps", recipe=RECIPE, num_images=2)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
