"""Masks that follow from the sample: exact counts, the same in every part of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sslkit.nn import masking
from sslkit.nn.masking import Blocks, block_masked, coarse_masked, split_patches
from sslkit.randomness import SampleRandom

GRID = (14, 14)


def source(count: int = 64, epoch: int = 0) -> SampleRandom:
    return SampleRandom(7, "method", epoch, torch.arange(count) * 3 + 1)


def hidden(random: SampleRandom) -> Tensor:
    """(B, 64) bool."""
    _, order = split_patches(random, 64, 16)
    return torch.zeros(len(order), 64, dtype=torch.bool).scatter(1, order, True)


MASKS: dict[str, Callable[[SampleRandom], Tensor]] = {
    "uniform": hidden,
    "cells": lambda random: coarse_masked(random, GRID, (2, 2), 0.6),
    "blocks": lambda random: block_masked(random, GRID, 75),
}


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_a_mask_is_the_samples_own(make: Callable[[SampleRandom], Tensor]) -> None:
    """In any part and order of a batch, anew in every epoch, and without torch's generator."""
    state = torch.get_rng_state()
    whole = make(source())
    rows = torch.tensor([40, 3, 17])
    assert torch.equal(make(source().select(rows)), whole[rows])
    assert torch.equal(make(source()), whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(whole.unique(dim=0)) == len(whole)
    assert not torch.equal(make(source(epoch=1)), whole)


# --- Uniform -------------------------------------------------------------------------------------


def test_patches_are_kept_uniformly_and_none_is_lost() -> None:
    kept, others = split_patches(source(4000), 64, 16)
    assert kept.shape == (4000, 16)
    assert torch.equal(
        torch.cat([kept, others], 1).sort(1).values, torch.arange(64).expand(4000, -1)
    )
    shares = torch.bincount(kept.flatten(), minlength=64) / 4000
    deviation = math.sqrt(0.25 * 0.75 / 4000)
    assert (shares - 0.25).abs().max() < 4.5 * deviation
    first = torch.bincount(kept[:, 0], minlength=64) / 4000  # the order is uniform too
    assert (first - 1 / 64).abs().max() < 4.5 * math.sqrt(1 / 64 / 4000)


@pytest.mark.parametrize("kept", [0, 64])
def test_something_must_be_kept_and_something_hidden(kept: int) -> None:
    with pytest.raises(ValueError, match="of 64 patches 1 to 63 can be kept"):
        split_patches(source(), 64, kept)


# --- Cells ---------------------------------------------------------------------------------------


def test_cells_are_masked_as_a_whole() -> None:
    masked = coarse_masked(source(2000), (12, 6), (2, 3), 0.6).view(-1, 12, 6)
    cells = masked.view(-1, 6, 2, 2, 3).transpose(2, 3).flatten(3)
    assert torch.equal(cells.any(-1), cells.all(-1))
    assert (masked.sum((1, 2)) == 6 * math.ceil(0.6 * 12)).all()
    shares = cells.any(-1).double().mean(0)
    assert (shares - 8 / 12).abs().max() < 4.5 * math.sqrt(2 / 9 / 2000)
    with pytest.raises(ValueError, match="cells of 5 x 3 do not fill 12 x 6 patches"):
        coarse_masked(source(), (12, 6), (5, 3), 0.6)


# --- Blocks --------------------------------------------------------------------------------------


def slow_blocks(words: np.ndarray, count: int, blocks: Blocks) -> tuple[np.ndarray, int]:
    """Bao et al.'s algorithm for one image, (rows, columns), and what it leaves unmasked. words:
    (rounds, 4) float32 in [0, 1)."""
    mask, missing, failed = np.zeros(GRID, dtype=bool), count, 0
    single = np.float32
    for area, aspect, row, column in words:
        if missing == 0 or failed == blocks.tries:
            break
        limit = missing if blocks.most is None else min(missing, blocks.most)
        wanted = single(blocks.least) + single(limit - blocks.least) * area
        step = -2 * math.log(blocks.aspect) / 4096
        ratio = single(
            math.exp(math.log(blocks.aspect) + step * (int(aspect * single(4096)) + 0.5))
        )
        height, width = round(float(np.sqrt(wanted * ratio))), round(float(np.sqrt(wanted / ratio)))
        failed += 1
        if height < GRID[0] and width < GRID[1]:
            top = int(row * single(GRID[0] - height + 1))
            left = int(column * single(GRID[1] - width + 1))
            part = mask[top : top + height, left : left + width]
            new = part.size - part.sum()
            if 0 < new <= limit:
                part[:] = True
                missing, failed = missing - int(new), 0
    return mask, missing


@pytest.mark.parametrize(
    ("count", "blocks"),
    [(75, Blocks()), (120, Blocks(most=40)), (20, Blocks(least=4, aspect=0.5, tries=3))],
)
def test_blocks_against_a_loop_over_images(count: int, blocks: Blocks) -> None:
    random = source(300)
    found = block_masked(random, GRID, count, blocks).view(-1, *GRID)
    words = random.uniform("blocks", 4 * blocks.rounds).view(300, -1, 4).numpy()
    short = 0
    for mask, given in zip(found.numpy(), words, strict=True):
        wanted, missing = slow_blocks(given, count, blocks)
        assert mask.sum() == count
        assert mask[wanted].all()
        assert (mask & ~wanted).sum() == missing
        short += missing > 0
    assert 0 < short < 250  # both happen: what is filled up, and what needs nothing


def test_counts_may_differ_by_image() -> None:
    counts = torch.tensor([0, 10, 75, 196] * 4)
    masked = block_masked(source(16), GRID, counts)
    assert torch.equal(masked.sum(1), counts)


def test_blocks_hang_together_more_than_single_patches() -> None:
    """Neighbours of a masked patch are masked too: 0.38 of them by chance."""
    masked = block_masked(source(500), GRID, 75).view(-1, *GRID)
    both = (masked[:, :, 1:] & masked[:, :, :-1]).sum() / masked[:, :, :-1].sum()
    assert 0.75 < float(both) < 0.95


def test_a_mask_does_not_depend_on_when_the_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, which is not asked whether all images are done, it goes on."""
    early = block_masked(source(), GRID, 75)
    monkeypatch.setattr(masking, "_may_end_early", lambda device: False)
    assert torch.equal(block_masked(source(), GRID, 75), early)
