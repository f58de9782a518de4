"""The order of a network's layers, and learning rates that fall towards its input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.nn.layer_groups import decayed_scales, groups_by_module_order


class Tokens(nn.Module):
    """A network with a parameter of its own, a list of blocks and a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.embed = nn.Linear(3, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.norm = nn.LayerNorm(3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.embed.weight


def names(groups: object) -> list[list[str]]:
    return [[name for name, _ in group] for group in groups]  # type: ignore[attr-defined]


def test_module_order_takes_lists_apart_and_counts_shared_parameters_once() -> None:
    assert names(groups_by_module_order(nn.Sequential(Tokens()))) == [
        ["0.token", "0.embed.weight", "0.embed.bias"],
        ["0.blocks.0.weight", "0.blocks.0.bias"],
        ["0.blocks.1.weight", "0.blocks.1.bias"],
        ["0.norm.weight", "0.norm.bias"],
        ["0.tied.bias"],
    ]
    assert groups_by_module_order(nn.ReLU()) == []


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        ("resnet10t", "model.conv1.0.weight", "model.layer4."),
        ("test_vit", "model.cls_token", "model.norm.bias"),
        ("test_convnext", "model.stem.0.weight", "model."),
    ],
)
def test_timm_models_go_by_stage_or_block(model: str, first: str, last: str) -> None:
    backbone = TimmBackbone(TimmBackbone.Config(model=model), channels=3, image_size=64)
    groups = backbone.depth_groups()
    listed = [name for group in names(groups) for name in group]
    assert sorted(listed) == sorted(name for name, _ in backbone.named_parameters())
    assert groups[0][0][0] == first
    assert groups[-1][-1][0].startswith(last)
    if model == "resnet10t":
        assert len(groups) == 5, "the stem and four stages"
    if model == "test_vit":
        assert len(groups) == 7, "the embedding and six blocks"


def test_the_rate_falls_towards_the_input() -> None:
    assert decayed_scales(3, 0.5) == [0.125, 0.25, 0.5]
    assert decayed_scales(2, 1.0) == [1.0, 1.0]
