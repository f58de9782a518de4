"""Colour operations against torchvision's, each sample with its own factor."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from sslkit.nn import color
from sslkit.nn.jitter import JITTER_OPS, _jitter_by_selection, color_jitter

TOLERANCE = 1e-5
REFERENCE = {
    "brightness": reference.adjust_brightness,
    "contrast": reference.adjust_contrast,
    "saturation": reference.adjust_saturation,
    "hue": reference.adjust_hue,
}
OURS = {
    "brightness": color.adjust_brightness,
    "contrast": color.adjust_contrast,
    "saturation": color.adjust_saturation,
    "hue": color.adjust_hue,
}
ORDERS = torch.tensor(list(itertools.permutations(range(4))))


def factors_for(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Strong jitter: factors from 0 to 2, hue all around."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(4, count, generator=generator)
    return dict(zip(JITTER_OPS, (*(2 * values[:3]), values[3] - 0.5), strict=True))


def jitter_one_by_one(images: Tensor, order: Tensor, factors: dict[str, Tensor]) -> Tensor:
    results = []
    for row, image in enumerate(images):
        for position in order[row].tolist():
            name = JITTER_OPS[position]
            if name in factors:
                image = REFERENCE[name](image, factors[name][row].item())
        results.append(image)
    return torch.stack(results)


@pytest.fixture(scope="module", params=["small", "large"])
def images(request, small_images, large_images) -> Tensor:
    """(B, 3, 32, 32) or (B, 3, 224, 224) float."""
    chosen = small_images if request.param == "small" else large_images[:, :, 16:240, 16:240]
    return chosen.float() / 255


@pytest.mark.parametrize("name", JITTER_OPS)
def test_operation(images, name):
    for seed in range(3):
        factor = factors_for(len(images), seed)[name]
        before = images.clone()
        ours = OURS[name](images, factor)
        assert torch.equal(images, before)
        for image, value, mine in zip(images, factor.tolist(), ours, strict=True):
            assert (mine - REFERENCE[name](image, value)).abs().max() < TOLERANCE


def test_grayscale(images):
    expected = reference.rgb_to_grayscale(images, num_output_channels=3)
    assert (color.grayscale(images) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", JITTER_OPS)
def test_on_real_photographs(imagenet_images, name):
    images = imagenet_images.float() / 255
    factor = factors_for(len(images))[name]
    for image, value, mine in zip(images, factor.tolist(), OURS[name](images, factor), strict=True):
        assert (mine - REFERENCE[name](image, value)).abs().max() < TOLERANCE


def test_hue_of_every_corner_and_edge_of_the_cube():
    """Ties between channels (greys, pure and secondary colours) and wrap-around both ways, against
    Python's own colorsys."""
    levels = (0.0, 1 / 255, 0.3, 0.5, 254 / 255, 1.0)
    pixels = torch.tensor(list(itertools.product(levels, repeat=3)))
    shifts = torch.linspace(-0.5, 0.5, 25)
    images = pixels.T[None, :, :, None].expand(len(shifts), 3, len(pixels), 1)
    ours = color.adjust_hue(images.contiguous(), shifts)[..., 0].transpose(1, 2)
    for shift, row in zip(shifts.tolist(), ours, strict=True):
        expected = []
        for red, green, blue in pixels.tolist():
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            expected.append(colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value))
        assert (row - torch.tensor(expected)).abs().max() < 2e-6


def test_hue_leaves_greys_alone():
    grey = torch.rand(50, 1, 8, 8).expand(50, 3, 8, 8).contiguous()
    assert torch.equal(color.adjust_hue(grey, torch.rand(50) - 0.5), grey)


def test_hue_of_colours_next_to_grey():
    """Channels that differ in the last bit: as little colour as there can be, and no NaN."""
    images = torch.rand(40, 1, 8, 8).expand(40, 3, 8, 8).clone()
    images[:, 1] = torch.nextafter(images[:, 1], torch.ones(()))
    turned = color.adjust_hue(images, torch.rand(40) - 0.5)
    assert (turned - images).abs().max() < 1e-6


def test_jitter_in_all_orders(small_images):
    images = small_images[[0, 5, 23]].float() / 255
    images = images.repeat_interleave(len(ORDERS), dim=0)
    order = ORDERS.repeat(3, 1)
    factors = factors_for(len(images))
    apply = torch.ones(len(images), dtype=torch.bool)
    ours = color_jitter(images, apply, order, factors)
    expected = jitter_one_by_one(images, order, factors)
    assert (ours - expected).abs().max() < TOLERANCE
    # The order must matter here, or the test shows nothing.
    assert (expected[:24] - expected[:1]).abs().amax(dim=(1, 2, 3)).count_nonzero() >= 20


def test_jitter_of_large_images(large_images):
    images = large_images[:, :, :224, :224].float() / 255
    factors, order = factors_for(len(images)), ORDERS[[1, 8, 15, 22]]
    apply = torch.tensor([True, False, True, True])
    ours = color_jitter(images, apply, order, factors)
    expected = jitter_one_by_one(images, order, factors)
    expected[1] = images[1]
    assert (ours - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("left_out", JITTER_OPS)
def test_jitter_without_one_operation(small_images, left_out):
    images = small_images.float() / 255
    factors = factors_for(len(images))
    del factors[left_out]
    apply = torch.ones(len(images), dtype=torch.bool)
    ours = color_jitter(images, apply, ORDERS, factors)
    assert (ours - jitter_one_by_one(images, ORDERS, factors)).abs().max() < TOLERANCE


def test_selection_equals_grouping(small_images):
    """What GPUs and compilers run does the same as what a CPU runs."""
    images = small_images.float() / 255
    factors, apply = factors_for(len(images)), torch.arange(len(images)) % 3 > 0
    for names in (JITTER_OPS, ("hue",), ("contrast", "saturation"), ("brightness",)):
        some = {name: factors[name] for name in names}
        grouped = color_jitter(images, apply, ORDERS, some)
        selected = _jitter_by_selection(images, apply, ORDERS, some, None)
        assert (grouped - selected).abs().max() < 1e-6
        assert torch.equal(selected[~apply], images[~apply])


def test_samples_that_are_not_chosen_keep_their_bits(small_images):
    images = small_images.float() / 255
    before = images.clone()
    apply = torch.arange(len(images)) % 2 == 0
    ours = color_jitter(images, apply, ORDERS, factors_for(len(images)))
    assert torch.equal(ours[~apply], images[~apply])
    assert (ours[apply] != images[apply]).flatten(1).any(dim=1).all()
    assert torch.equal(images, before)
    nobody = torch.zeros_like(apply)
    assert torch.equal(color_jitter(images, nobody, ORDERS, factors_for(24)), images)
    assert color_jitter(images[:0], apply[:0], ORDERS[:0], factors_for(0)).shape[0] == 0


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_brightness_and_contrast_of_other_channels(channels):
    images, factor = torch.rand(5, channels, 9, 9), 2 * torch.rand(5)
    expected = (images * factor.view(-1, 1, 1, 1)).clamp(0, 1)
    assert torch.allclose(color.adjust_brightness(images, factor), expected)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    expected = (mean + factor.view(-1, 1, 1, 1) * (images - mean)).clamp(0, 1)
    assert torch.allclose(color.adjust_contrast(images, factor), expected, atol=1e-6)
