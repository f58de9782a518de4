"""Shapes, layers, and that an image does not see the others of its batch."""

from __future__ import annotations

import torch
from torch import nn

from sslkit_newname.head import NewName


def head(**fields: int) -> NewName:
    return NewName(NewName.Config.model_validate(fields), in_dim=32)


def test_the_embedding_has_the_width_that_the_head_states() -> None:
    small = head(hidden_dim=24, out_dim=16)
    assert small.out_dim == 16
    assert small(torch.randn(8, 32)).shape == (8, 16)


def test_an_image_has_the_same_embedding_in_any_batch() -> None:
    features, network = torch.randn(8, 32), head()
    alone = torch.cat([network(row) for row in features.split(1)])
    torch.testing.assert_close(network(features), alone)


def test_the_layers_one_after_the_other_are_the_head() -> None:
    features, network = torch.randn(4, 32), head(num_blocks=2)
    layers = network.as_layers()
    assert len(layers) == 2 + 2
    assert torch.equal(nn.Sequential(*layers)(features), network(features))


def test_a_block_that_changes_nothing_passes_its_input_on() -> None:
    block, x = head(hidden_dim=8).as_layers()[1], torch.randn(3, 8)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)
