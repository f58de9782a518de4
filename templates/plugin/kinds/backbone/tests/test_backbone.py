"""Shapes, maps, and what evaluation relies on."""

from __future__ import annotations

import pytest
import torch
from sslkit.api import RunFacts, ViewSpec

from sslkit_newname.backbone import NewName


def network(width: int = 8, stages: int = 2, channels: int = 3) -> NewName:
    config = NewName.Config(width=width, stages=stages)
    return NewName(config, channels=channels, image_size=16)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_have_the_width_that_is_stated(channels: int) -> None:
    backbone = network(channels=channels)
    assert backbone.num_features == 8 * 2**2
    assert backbone(torch.rand(2, channels, 16, 16)).shape == (2, 32)


def test_maps_are_as_their_stages_say_and_their_mean_is_the_feature() -> None:
    backbone, images = network().eval(), torch.rand(2, 3, 16, 24)
    first, last = backbone.feature_maps(images, (0, -1))
    for found, stage in zip((first, last), backbone.feature_stages, strict=True):
        assert found.shape == (2, stage.channels, 16 // stage.stride, 24 // stage.stride)
    torch.testing.assert_close(last.mean(dim=(2, 3)), backbone(images))


def test_in_evaluation_an_image_has_the_same_features_in_any_batch() -> None:
    backbone, images = network().eval(), torch.rand(4, 3, 16, 16)
    alone = torch.cat([backbone(image) for image in images.split(1)])
    torch.testing.assert_close(backbone(images), alone)


def test_more_halvings_than_the_view_has_are_refused() -> None:
    facts = RunFacts(
        num_images=64,
        channels=3,
        image_size=(16, 16),
        num_classes=None,
        batch_size=8,
        steps_per_epoch=8,
        total_steps=80,
        views=(ViewSpec(16), ViewSpec(16)),
    )
    assert not list(NewName.problems(NewName.Config(stages=4), facts))
    assert list(NewName.problems(NewName.Config(stages=5), facts))
