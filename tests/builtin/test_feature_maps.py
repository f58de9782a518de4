"""Feature maps of backbones: where they lie, what they hold, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.api import Backbone, NoFeatureMapsError
from sslkit.builtin.timm_backbone import TimmBackbone


def backbone(size: int = 64, **fields: Any) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(TimmBackbone.Config(**fields), channels=3, image_size=size).eval()


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "resnet10t"},
        {"model": "resnet10t", "stem": "small"},
        {"model": "resnet10t", "stem": "small_pool"},
        {"model": "resnet18", "stem": "small"},
        {"model": "resnet18", "stem": "small_pool"},
        {"model": "resnet18"},
        {"model": "convnext_atto"},
        {"model": "mobilenetv3_small_050"},
        {"model": "vit_tiny_patch16_224", "patch_size": 8},
        {"model": "vit_tiny_patch16_224", "patch_size": 8, "pool": "avg"},
        {"model": "swin_tiny_patch4_window7_224", "model_args": {"window_size": 2}},
    ],
    ids=str,
)
@torch.no_grad()
def test_maps_are_what_the_stages_say(fields: dict[str, Any]) -> None:
    network = backbone(**fields)
    images = torch.rand(2, 3, 64, 64)
    stages = network.feature_stages
    maps = network.feature_maps(images, range(len(stages)))
    assert len(maps) == len(stages) >= 4
    for stage, found in zip(stages, maps, strict=True):
        side = 64 // stage.stride
        assert found.shape == (2, stage.channels, side, side), stage
        assert found.isfinite().all()
    assert len({stage.name for stage in stages}) == len(stages)


@pytest.mark.parametrize("stem", ["default", "small", "small_pool"])
@torch.no_grad()
def test_the_pooled_last_map_of_a_resnet_is_its_feature(stem: str) -> None:
    network = backbone(model="resnet18", stem=stem)
    images = torch.rand(2, 3, 64, 48)
    (last,) = network.feature_maps(images)
    assert torch.equal(last.mean(dim=(2, 3)), network(images))


@torch.no_grad()
def test_the_patch_tokens_of_a_vit_are_those_behind_its_norm() -> None:
    network = backbone(model="vit_tiny_patch16_224")
    images = torch.rand(2, 3, 64, 64)
    (last,) = network.feature_maps(images)
    tokens = network.model.forward_features(network.normalized(images))[:, 1:]
    assert torch.allclose(last.flatten(2).mT, tokens, atol=1e-5)
    pooled = backbone(model="vit_tiny_patch16_224", pool="avg")
    width = pooled.num_features
    mean = pooled.feature_maps(images)[0].mean(dim=(2, 3))
    assert torch.allclose(F.layer_norm(mean, (width,), eps=1e-6), pooled(images), atol=1e-4)


@torch.no_grad()
def test_stages_come_in_the_order_asked_for_and_from_the_end() -> None:
    network = backbone(model="resnet18")
    images = torch.rand(1, 3, 64, 64)
    every = network.feature_maps(images, range(5))
    chosen = network.feature_maps(images, (-1, 1, 1, -2))
    assert all(torch.equal(a, every[i]) for a, i in zip(chosen, (4, 1, 1, 3), strict=True))


def test_what_cannot_be_had_is_said_in_a_line() -> None:
    network = backbone(model="resnet18")
    with pytest.raises(NoFeatureMapsError, match=r"has no stage 5; valid: -5 to 4"):
        network.feature_maps(torch.rand(1, 3, 64, 64), (5,))

    class Plain(Backbone):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    plain = Plain(None)
    assert plain.feature_stages == ()
    with pytest.raises(NoFeatureMapsError, match="Plain offers no feature maps"):
        plain.feature_maps(torch.rand(1, 3, 8, 8))
