"""Cutting images into patches, choosing some, and putting them back."""

from __future__ import annotations

import pytest
import torch

from sslkit.nn.patches import (
    gather_patches,
    hidden_patches,
    patchify,
    place_patches,
    unpatchify,
)

IMAGES = torch.rand(2, 3, 4, 12, generator=torch.Generator().manual_seed(0))


def test_a_patch_holds_its_pixels_row_by_row_channels_side_by_side() -> None:
    patches = patchify(IMAGES, (2, 4))
    assert patches.shape == (2, 6, 24)
    values = [
        IMAGES[1, channel, 2 + row, 4 + column]
        for row in range(2)
        for column in range(4)
        for channel in range(3)
    ]
    assert torch.equal(patches[1, 4], torch.stack(values))  # second row, second column
    assert torch.equal(unpatchify(patches, (2, 4), (2, 3)), IMAGES)
    with pytest.raises(ValueError, match="patches of 3 x 4 do not fill 4 x 12 pixels"):
        patchify(IMAGES, (3, 4))


def test_placed_patches_are_gathered_again() -> None:
    patches = patchify(IMAGES, (2, 4))
    chosen = torch.tensor([[5, 0], [2, 3]])
    some = gather_patches(patches, chosen)
    for image in range(2):
        for place, number in enumerate(chosen[image].tolist()):
            assert torch.equal(some[image, place], patches[image, number])
    filler = torch.full((24,), -1.0)
    placed = place_patches(some, chosen, filler, 6)
    assert torch.equal(gather_patches(placed, chosen), some)
    hidden = hidden_patches(chosen, 6)
    assert hidden.tolist() == [
        [False, True, True, True, True, False],
        [True, True, False, False, True, True],
    ]
    assert torch.equal(placed == -1.0, hidden[..., None].expand_as(placed))


def test_gradients_reach_the_patches_and_the_filler() -> None:
    some = torch.rand(2, 2, 3, requires_grad=True)
    filler = torch.zeros(3, requires_grad=True)
    place_patches(some, torch.tensor([[5, 0], [2, 3]]), filler, 6).sum().backward()
    assert some.grad is not None
    assert filler.grad is not None
    assert torch.equal(some.grad, torch.ones(2, 2, 3))
    assert filler.grad.tolist() == [8.0, 8.0, 8.0]
