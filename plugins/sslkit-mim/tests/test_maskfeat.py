"""MaskFeat: histograms of oriented gradients against closed forms and a loop over pixels; steps
against independent ones in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from mim_setup import BATCH, FACTS, PATCHES, SIDE, encoded, make, make_batch, vit
from sslkit_mim.hog import oriented_gradients
from test_mae import normalised
from torch import Tensor

from sslkit.api import Batch, Progress, resolve_component
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.nn.masking import Blocks, block_masked

FIRST, MASKED = Progress(0, 1, 1), 6  # 0.4 * 16


def maskfeat(**fields: Any) -> Any:
    return make("maskfeat", **{"min_block": 3, "cell": 4, **fields})


def masked_of(batch: Batch) -> Tensor:
    return block_masked(batch.random, (4, 4), MASKED, Blocks(least=3))


# --- Histograms ----------------------------------------------------------------------------------


def ramp(degrees: float) -> Tensor:
    """(1, 1, 24, 24): brighter in this direction, 0 to the right, 90 downwards."""
    at = torch.arange(24, dtype=torch.float64) / 100
    angle = math.radians(degrees)
    return (0.5 + math.cos(angle) * at[None] + math.sin(angle) * at[:, None])[None, None]


@pytest.mark.parametrize(
    ("degrees", "number"), [(0.0, 4), (15.0, 3), (45.0, 2), (80.0, 0), (100.0, 8), (195.0, 3)]
)
def test_a_ramp_has_all_its_weight_in_one_bin(degrees: float, number: int) -> None:
    """The bin of the angle from the vertical, of 20 degrees each: 0 is upright, 4 the middle. Lines
    have no sign: 15 and 195 degrees are one. Cells at the border see the mirrored edge."""
    found = oriented_gradients(ramp(degrees), 9, 8)[0, 0, :, 1, 1]
    wanted = torch.zeros(9, dtype=torch.float64)
    wanted[number] = 1.0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_contrast_and_brightness_do_not_count_and_channels_stand_apart() -> None:
    images = make_batch().views[0]
    found = oriented_gradients(images, 9, 8)
    assert found.shape == (BATCH, 3, 9, 2, 2)
    torch.testing.assert_close(oriented_gradients(0.3 * images + 0.2, 9, 8), found)
    torch.testing.assert_close(found.square().sum(2), torch.ones(BATCH, 3, 2, 2).double())
    alone = images.clone()
    alone[:, 1] = 0.5
    other = oriented_gradients(alone, 9, 8)
    torch.testing.assert_close(other[:, [0, 2]], found[:, [0, 2]])
    assert (other[:, 1] == 0.0).all()


@pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 0.7, 1.0])
def test_flat_cells_are_zeros_in_spite_of_rounding(level: float) -> None:
    assert (oriented_gradients(torch.full((1, 3, 16, 16), level), 9, 8) == 0.0).all()


def slow_histogram(channel: Tensor, bins: int, cell: int, window: int) -> Tensor:
    """(H, W) -> (bins, H / cell, W / cell), pixel by pixel."""
    height, width = channel.shape

    def at(row: int, column: int) -> float:
        row = -row if row < 0 else 2 * (height - 1) - row if row >= height else row
        column = -column if column < 0 else 2 * (width - 1) - column if column >= width else column
        return float(channel[row, column])

    def weight(row: int, column: int) -> float:
        middle, deviation = (window - 1) / 2, window // 2
        apart = [(n % window - middle) / deviation for n in (row, column)]
        return math.exp(-0.5 * (apart[0] ** 2 + apart[1] ** 2))

    found = torch.zeros(bins, height // cell, width // cell, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            across = down = 0.0
            for near, times in ((-1, 1.0), (0, 2.0), (1, 1.0)):
                across += times * (at(row + near, column - 1) - at(row + near, column + 1))
                down += times * (at(row - 1, column + near) - at(row + 1, column + near))
            number = math.floor(math.degrees(math.atan2(across, down)) / (180 / bins)) % bins
            length = math.hypot(across, down) * (weight(row, column) if window else 1.0)
            found[number, row // cell, column // cell] += length
    return found / found.square().sum(0).sqrt()


@pytest.mark.parametrize(("bins", "cell", "window"), [(9, 8, 0), (9, 8, 16), (5, 4, 8)])
def test_histograms_are_those_of_a_loop_over_pixels(bins: int, cell: int, window: int) -> None:
    images = make_batch().views[0][:2]
    found = oriented_gradients(images, bins, cell, window)
    for image, given in zip(images, found, strict=True):
        for channel, mine in zip(image, given, strict=True):
            torch.testing.assert_close(mine, slow_histogram(channel, bins, cell, window))


def test_directions_are_those_of_skimage() -> None:
    """skimage takes other differences (of two neighbours, none at the border) and counts from the
    horizontal; on ramps both are the same: bin b here is the angle 90 - degrees there."""
    hog = pytest.importorskip("skimage.feature", reason="scikit-image is not installed").hog
    for degrees in range(3, 180, 7):
        image = ramp(float(degrees))[0, 0].numpy()
        theirs = hog(image, 9, (8, 8), (1, 1), block_norm="L2", feature_vector=False)[1, 1, 0, 0]
        mine = oriented_gradients(ramp(float(degrees)), 9, 8)[0, 0, :, 1, 1]
        assert theirs.argmax() == degrees // 20
        assert int(mine.argmax()) == math.floor((90 - degrees) / 20) % 9
        assert theirs.max() == pytest.approx(1.0, abs=1e-4)


# --- The loss ------------------------------------------------------------------------------------


def slow_targets(image: Tensor, cell: int) -> Tensor:
    """(N, values): patch by patch, cell by cell, the bins of each channel."""
    channels = torch.stack([slow_histogram(channel, 9, cell, 0) for channel in image])
    each = 4 // cell
    rows = [
        torch.cat([
            channels[:, :, each * i + y, each * j + x].flatten()
            for y in range(each) for x in range(each)
        ])
        for i in range(4) for j in range(4)
    ]  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize("cell", [4, 2])
def test_a_step_is_that_of_a_slow_reference(cell: int) -> None:
    method, batch = maskfeat(cell=cell), make_batch()
    w = dict(method.named_parameters())
    terms = []
    rows = zip(batch.views[0], normalised(batch.views[0]), masked_of(batch), strict=True)
    for raw, image, hidden in rows:
        numbers = [n for n in range(PATCHES) if hidden[n]]
        tokens = dict.fromkeys(numbers, w["mask_token"][0, 0])
        x = encoded(w, image, list(range(PATCHES)), tokens)[1:]
        made, target = x @ w["predict.weight"].T + w["predict.bias"], slow_targets(raw, cell)
        assert target.shape == (PATCHES, 27 * (4 // cell) ** 2)
        terms += [((made[n] - target[n]) ** 2).mean() for n in numbers]
    assert len(terms) == BATCH * MASKED
    wanted = sum(terms, torch.zeros(())) / len(terms)
    found = method.objective(method.embed(batch), batch, FIRST).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-11)
    names, parameters = zip(*method.named_parameters(), strict=True)
    mine = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(wanted, parameters)
    for name, one, other in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12, msg=name)


def test_guessing_nothing_costs_a_ninth() -> None:
    """Each histogram has unit length, so the mean square of its values is 1 / bins."""
    method, batch = maskfeat(), make_batch()
    with torch.no_grad():
        method.predict.weight.zero_()
        method.predict.bias.zero_()
    loss = method.objective(method.embed(batch), batch, FIRST).loss
    assert loss.item() == pytest.approx(1 / 9, abs=1e-12)


def test_a_patch_of_16_px_has_108_values() -> None:
    """2 x 2 cells, 9 bins, 3 channels, as in the authors' code."""
    facts = replace(FACTS, views=(replace(FACTS.views[0], size=32),))
    slot = resolve_component(
        load_plugins().registry, "method", {"name": "maskfeat", "min_block": 1, "mask_ratio": 0.5}
    )
    method: Any = slot.build(vit(32, patch_size=16), facts)
    assert method.predict.out_features == 108


def test_micro_batches_are_the_whole_batch() -> None:
    method, batch = maskfeat(), make_batch()
    parts = [method.embed(batch.select(slice(i, i + 2))) for i in (0, 2, 4)]
    for name, value in method.embed(batch).items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cell": 8}, "cell: 8 px; it must be a divisor of the patch, 4 x 4 px"),
        ({"cell": 3}, "cell: 3 px; it must be a divisor of the patch"),
        ({"mask_ratio": 0.01}, r"mask_ratio: 0\.01 masks 0 of 16 patches"),
        ({"min_block": 11}, "min_block: 11 patches are more than the 6 that are masked"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as raised:
        maskfeat(**fields)
    assert "\n" not in str(raised.value)


def test_a_window_of_one_pixel_weights_nothing() -> None:
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    one, none = (oriented_gradients(images, 9, 8, window) for window in (1, 0))
    torch.testing.assert_close(one, none)


def test_a_window_that_does_not_fill_the_view_is_refused_before_anything_is_built() -> None:
    method = maskfeat()
    config = method.config.model_copy(update={"window": 6})
    ((place, text),) = type(method).problems(config, FACTS)
    assert (place, text) == ("window", f"6 px; it must be a divisor of the view, {SIDE} px")
