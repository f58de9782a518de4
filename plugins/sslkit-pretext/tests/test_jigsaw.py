"""Jigsaw: the tiles, the formula, and permutations that stay what they were."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from pretext_setup import (
    BATCH,
    SIDE,
    WIDTH,
    SmallNet,
    facts,
    in_parts,
    make_batch,
    make_method,
    method_slot,
    objective,
    problems,
    train,
)
from pydantic import ValidationError
from sslkit_pretext import jigsaw
from sslkit_pretext.tiles import cut_tiles, standardised
from torch import Tensor

from sslkit.api import Batch, ViewSpec
from sslkit.errors import RecipeError

CLASSES, TILE = 7, 3
SMALL: dict[str, Any] = {
    "num_permutations": CLASSES,
    "tile_size": TILE,
    "tile_head": {"name": "mlp", "num_layers": 1, "out_dim": 5, "output_norm": "none"},
    "head": {
        "name": "mlp",
        "num_layers": 1,
        "out_dim": CLASSES,
        "output_norm": "none",
        "output_bias": True,
    },
}
"""Without batch statistics, so that tiles can be looked at one by one."""


def make_jigsaw(**fields: Any) -> jigsaw.Jigsaw:
    made: jigsaw.Jigsaw = make_method("jigsaw", **{**SMALL, **fields})
    return made


# --- Tiles ----------------------------------------------------------------------------------------


def test_tiles_lie_in_their_cells_shifted_as_told() -> None:
    images = torch.rand(2, 3, 14, 14)  # cells of 4, from pixel 1 on
    shifts = torch.randint(0, 3, (2, 9, 2))
    tiles = cut_tiles(images, shifts, 2)
    assert tiles.shape == (2, 9, 3, 2, 2)
    for image in range(2):
        for number in range(9):
            down, right = shifts[image, number].tolist()
            top, left = 1 + 4 * (number // 3) + down, 1 + 4 * (number % 3) + right
            expected = images[image, :, top : top + 2, left : left + 2]
            assert torch.equal(tiles[image, number], expected)


def test_every_channel_of_every_tile_is_standardised() -> None:
    tiles = torch.rand(2, 9, 3, 5, 5, dtype=torch.float64)
    tiles[0, 0, 1] = 0.3
    found = standardised(tiles).numpy()
    for image, number, channel in np.ndindex(2, 9, 3):
        pixels = tiles[image, number, channel].numpy()
        expected = (pixels - pixels.mean()) / np.sqrt(pixels.var() + 1e-5)
        np.testing.assert_allclose(found[image, number, channel], expected, atol=1e-12)
    assert abs(found[0, 0, 1]).max() < 1e-10


def seen_by_the_network(method: jigsaw.Jigsaw, batch: Batch) -> Tensor:
    """(B, 9, C, t, t): what the first convolution is given."""
    seen: list[Tensor] = []
    convolution = method.backbone.convolution
    handle = convolution.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.embed(batch)
    handle.remove()
    return seen[0].detach().unflatten(0, (-1, 9))


def test_what_the_network_sees_has_no_level_and_no_contrast() -> None:
    """The backbone's own normalisation is undone before it."""
    tiles = seen_by_the_network(make_jigsaw(), make_batch())
    mean, variance = tiles.mean((3, 4)), tiles.var((3, 4), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-6, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=2e-3, rtol=0)


def test_every_image_and_tile_is_placed_by_itself_and_everywhere() -> None:
    batch = make_batch(size=60)
    places = batch.random.integers("shift", 18, SIDE // 3 - TILE + 1).unflatten(1, (9, 2))
    assert places.unique().tolist() == [0, 1]
    assert len(places.flatten(1).unique(dim=0)) > 55  # of 60 images
    ramp = torch.arange(SIDE * SIDE, dtype=torch.float64).view(SIDE, SIDE) / SIDE**2
    method = make_jigsaw(standardize_tiles=False)
    shown = Batch((ramp.expand(60, 3, -1, -1),), batch.indices, batch.random)
    corners = seen_by_the_network(method, shown)[:, :, 0, 0, 0]
    assert len(corners.unique()) == 9 * 4  # each of nine cells at each of four places


# --- The formula ----------------------------------------------------------------------------------


def reference(method: jigsaw.Jigsaw, batch: Batch) -> Tensor:
    """The loss in loops, from the definition, with the networks of the method."""
    losses = []
    shifts = batch.random.integers("shift", 18, SIDE // 3 - TILE + 1).tolist()
    labels = batch.random.integers("permutation", 1, CLASSES)[:, 0].tolist()
    net = method.backbone
    for image, shift, label in zip(batch.views[0].numpy(), shifts, labels, strict=True):
        outputs = []
        for number in method.permutations[label].tolist():
            top = SIDE // 3 * (number // 3) + shift[2 * number]
            left = SIDE // 3 * (number % 3) + shift[2 * number + 1]
            tile = image[:, top : top + TILE, left : left + TILE]
            centred = tile - tile.mean((1, 2), keepdims=True)
            tile = centred / np.sqrt(tile.var((1, 2), keepdims=True) + 1e-5)
            maps = net.norm(net.convolution(torch.from_numpy(tile)[None])).tanh()
            outputs.append(method.tile_head(maps.mean((2, 3)))[0].clamp_min(0.0))
        logits = method.head(torch.cat(outputs)[None])[0]
        losses.append(-torch.log(logits[label].exp() / sum(logit.exp() for logit in logits)))
    return torch.stack(losses).mean()


def test_loss_and_accuracy_are_those_of_the_definition() -> None:
    method, batch = make_jigsaw(), make_batch()
    output = objective(method, batch)
    torch.testing.assert_close(output.loss, reference(method, batch), rtol=1e-10, atol=0)
    labels = batch.random.integers("permutation", 1, CLASSES)[:, 0]
    right = method.embed(batch)["logits"].argmax(1) == labels
    assert output.metrics["pretext_top1"] == right.float().mean()


def test_three_steps_are_those_of_the_definition() -> None:
    method = make_jigsaw()
    other = copy.deepcopy(method)
    list(train(method, map(make_batch, range(3))))
    for step in range(3):
        reference(other, make_batch(step)).backward()
        with torch.no_grad():
            for parameter in other.parameters():
                assert parameter.grad is not None
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("classes", "chance"), [(7, math.log(7)), (1000, 6.907755278982137)])
def test_equal_logits_cost_the_logarithm_of_the_classes(classes: int, chance: float) -> None:
    head = {**SMALL["head"], "out_dim": classes}
    method = make_jigsaw(num_permutations=classes, head=head)
    for parameter in method.head.parameters():
        torch.nn.init.zeros_(parameter)
    assert float(objective(method, make_batch()).loss.detach()) == pytest.approx(chance, rel=1e-12)


def test_shuffled_tiles_can_be_put_back() -> None:
    """Place p holds tile `permutations[label, p]`."""
    method, batch = make_jigsaw(standardize_tiles=False), make_batch()
    shifts = batch.random.integers("shift", 18, SIDE // 3 - TILE + 1).unflatten(1, (9, 2))
    tiles = cut_tiles(batch.views[0], shifts, TILE)
    labels = batch.random.integers("permutation", 1, CLASSES)[:, 0]
    shuffled = method._shuffled_tiles(batch.views[0], batch.random)
    for image, label in enumerate(labels.tolist()):
        back = method.permutations[label].argsort()
        assert torch.equal(shuffled[image][back], tiles[image])


def test_parts_of_a_batch_give_what_the_batch_gives() -> None:
    method, batch = make_jigsaw(), make_batch()
    whole, parts = method.embed(batch), in_parts(method, batch, 3)
    assert whole["features"].shape == (BATCH, 9, WIDTH)
    assert whole["logits"].shape == (BATCH, CLASSES)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-12)


# --- The permutations are state -------------------------------------------------------------------


def test_a_restored_method_has_the_permutations_that_were_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = make_jigsaw()
    state = {name: value.clone() for name, value in saved.state_dict().items()}
    monkeypatch.setattr(
        jigsaw, "far_permutations", lambda count, _: torch.arange(9).repeat(count, 1)
    )
    restored = make_jigsaw()
    assert not torch.equal(restored.permutations, saved.permutations)
    restored.load_state_dict(state)
    assert torch.equal(restored.permutations, saved.permutations)
    batch = make_batch()
    assert torch.equal(objective(restored, batch).loss, objective(saved, batch).loss)


def test_the_seed_of_the_permutations_is_a_field_of_its_own() -> None:
    assert not torch.equal(
        make_jigsaw().permutations, make_jigsaw(permutations_seed=1).permutations
    )


# --- What it refuses ------------------------------------------------------------------------------


def warnings_of(**fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("jigsaw", **{**SMALL, **fields})
    return list(slot.cls.warnings(slot.config, facts()))


def test_tiles_must_fit_and_must_not_touch() -> None:
    assert problems("jigsaw", facts(), **SMALL) == []
    assert problems("jigsaw", facts(), **{**SMALL, "tile_size": 5}) == [
        (
            "tile_size",
            "3 x 3 tiles of 5 pixels do not fit into views of 12; take at most 4, or larger views",
        )
    ]
    ((_, said),) = problems("jigsaw", facts(ViewSpec(SIDE), ViewSpec(SIDE)), **SMALL)
    assert said.startswith("jigsaw needs 1 view, but the augmentation makes 2")
    assert warnings_of() == []
    ((field, warned),) = warnings_of(tile_size=4)
    assert field == "tile_size"
    assert warned.startswith("tiles of 4 pixels touch in views of 12")


def test_a_tile_of_one_pixel_has_no_contrast() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        method_slot("jigsaw", **{**SMALL, "tile_size": 1})


def test_the_head_has_a_logit_for_each_permutation() -> None:
    with pytest.raises(RecipeError, match=r"^method.head: its output has width 7, .* out_dim: 8$"):
        make_jigsaw(num_permutations=8)


@pytest.mark.parametrize(
    "error",
    [AssertionError("only the size of the view"), AssertionError(), NotImplementedError("no form")],
    ids=repr,
)
def test_a_backbone_of_one_size_is_refused(error: Exception) -> None:
    class OneSize(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[-1] != SIDE:
                raise error
            return super().forward(images)

    with pytest.raises(RecipeError, match=r"^method.tile_size: the backbone takes no images of 3"):
        make_method("jigsaw", OneSize(), **SMALL)
