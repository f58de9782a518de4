"""SimMIM against an independent step in float64, and the paper's rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mim_setup import BATCH, PATCHES, VALUES, encoded, make, make_batch, pixels_of
from test_mae import normalised
from torch import Tensor

from sslkit.api import Batch, Progress
from sslkit.errors import RecipeError
from sslkit.recipe import load_recipe

FIRST = Progress(0, 1, 1)


def simmim(**fields: Any) -> Any:
    return make("simmim", **{"cell": 8, **fields})


def slow_loss(method: Any, batch: Batch, ratio: float) -> Tensor:
    """sum |x - x'| mask / sum mask / 3 over all pixels of the batch, an image at a time."""
    w = dict(method.named_parameters())
    order = batch.random.permutation("mask", 4)
    total, pixels = torch.zeros((), dtype=torch.float64), 0
    for image, cells in zip(normalised(batch.views[0]), order.tolist(), strict=True):
        chosen = cells[: math.ceil(4 * ratio)]
        masked = [n for n in range(PATCHES) if 2 * (n // 8) + (n % 4) // 2 in chosen]
        tokens = dict.fromkeys(masked, w["mask_token"][0, 0])
        x = encoded(w, image, list(range(PATCHES)), tokens)[1:]
        made = x @ w["predict.weight"].T + w["predict.bias"]
        target = pixels_of(image)
        for number in masked:
            total = total + (made[number] - target[number]).abs().sum()
            pixels += VALUES // 3
    return total / pixels / 3


@pytest.mark.parametrize("ratio", [0.6, 0.5])
def test_a_step_is_that_of_a_slow_reference(ratio: float) -> None:
    method, batch = simmim(mask_ratio=ratio), make_batch()
    found = method.objective(method.embed(batch), batch, FIRST).loss
    wanted = slow_loss(method, batch, ratio)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    names, parameters = zip(*method.named_parameters(), strict=True)
    mine = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(wanted, parameters)
    for name, one, other in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=name)
        assert one.abs().max() > 0.0, name


def test_masks_are_whole_cells_as_many_in_each_image() -> None:
    method, batch = simmim(), make_batch()
    _, masked = method._tokens(batch)
    cells = masked.view(BATCH, 2, 2, 2, 2).transpose(2, 3).flatten(3)
    assert torch.equal(cells.any(-1), cells.all(-1))
    assert (masked.sum(1) == 12).all()  # ceil(0.6 * 4) cells of 4 patches


def test_the_mask_token_starts_within_a_deviation() -> None:
    token = simmim().mask_token
    assert 0.0 < token.abs().max() <= 0.02


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cell": 6}, "cell: 6 px; it must be a multiple of the patch, 4 x 4 px, and a divisor"),
        ({"cell": 12}, "cell: 12 px; .* a divisor of the view, 16 px"),
        ({"cell": 16}, r"mask_ratio: 0\.6 masks all of 1 cells"),
        ({"mask_ratio": 0.9}, r"mask_ratio: 0\.9 masks all of 4 cells"),
    ],
)
def test_cells_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as raised:
        simmim(**fields)
    assert "\n" not in str(raised.value)


def test_relative_positions_are_taken() -> None:
    method = make("simmim", {"model": "test_vit"}, cell=4)
    assert method.embed(make_batch())["loss"].shape == (BATCH,)


def test_the_recipe_has_the_network_and_the_clipping_of_the_authors_code() -> None:
    """Theirs: config.py and simmim_pretrain__vit_base__img224__800ep.yaml of microsoft/SimMIM."""
    recipe = load_recipe("simmim_vit_b", ["backbone.model_args.depth=2"])
    assert recipe.train.max_grad_norm == 5.0
    network = recipe.backbone.build(channels=3, image_size=224).model
    assert network.pos_embed is None
    assert network.rel_pos_bias.relative_position_bias_table.shape == (27 * 27 + 3, 12)
    first, last = network.blocks
    assert "relative_position_bias_table" not in dict(first.attn.named_parameters())
    assert torch.equal(first.gamma_1, torch.full((768,), 0.1))
    assert last.drop_path1.drop_prob == pytest.approx(0.1)
