"""Blur, rotation and solarisation against torchvision's, each sample with its own parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from sslkit.nn.image import gaussian_blur, rotate, solarize
from sslkit.nn.masked_apply import select_rows


@pytest.fixture(scope="module")
def small(small_images) -> Tensor:
    return small_images.float() / 255


@pytest.fixture(scope="module")
def large(large_images) -> Tensor:
    return large_images[:, :, 16:240, 16:240].float() / 255


def blur_difference(images: Tensor, sigma: Tensor, kernel: int) -> float:
    ours = gaussian_blur(images, sigma, kernel)
    assert ours.is_contiguous()
    expected = [
        reference.gaussian_blur(image, [kernel, kernel], [value, value])
        for image, value in zip(images, sigma.tolist(), strict=True)
    ]
    return (ours - torch.stack(expected)).abs().max().item()


@pytest.mark.parametrize("kernel", [1, 3, 7, 31])
def test_blur_small(small, kernel):
    sigma = torch.linspace(0.1, 2.0, len(small))
    assert blur_difference(small, sigma, kernel) < 1e-5


def test_blur_large(large):
    assert blur_difference(large, torch.tensor([0.1, 2.0, 1.1, 0.5]), 23) < 1e-5


def test_blur_of_real_photographs(imagenet_images):
    images = imagenet_images.float() / 255
    assert blur_difference(images, torch.linspace(0.1, 2.0, len(images)), 23) < 1e-5


def test_blur_reflects_as_far_as_it_can():
    """The largest kernel that torchvision allows: padding one less than the side."""
    assert blur_difference(torch.rand(2, 1, 6, 9), torch.tensor([1.0, 30.0]), 11) < 1e-5


def test_blur_keeps_the_mean_of_a_constant():
    flat = torch.full((2, 4, 20, 20), 0.37)
    assert torch.allclose(gaussian_blur(flat, torch.tensor([0.3, 9.0]), 9), flat, atol=1e-6)


@pytest.mark.parametrize("fill", [0.0, 0.5])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("which", ["small", "large"])
def test_rotate(which, mode, fill, request):
    images = request.getfixturevalue(which)
    generator = torch.Generator().manual_seed(3)
    degrees = 360 * torch.rand(len(images), generator=generator) - 180
    ours = rotate(images, degrees, mode, fill)
    for image, angle, mine in zip(images, degrees.tolist(), ours, strict=True):
        theirs = reference.rotate(image, angle, InterpolationMode[mode.upper()], fill=fill)
        apart = (mine - theirs).abs() > 1 / 255
        # Where a source point lies half-way between pixels, rounding decides which is nearest.
        assert apart.float().mean() <= (0.0 if mode == "bilinear" else 2e-4)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_rotate_turns_counter_clockwise(mode):
    images = torch.rand(4, 2, 9, 9)
    turned = rotate(images, torch.tensor([0.0, 90.0, 180.0, -90.0]), mode)
    for image, result, quarters in zip(images, turned, (0, 1, 2, 3), strict=True):
        assert torch.allclose(result, image.rot90(quarters, (1, 2)), atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_solarize(small, threshold):
    assert torch.equal(solarize(small, threshold), reference.solarize(small, threshold))


def test_select_rows_changes_the_chosen_alone(small):
    mask = torch.arange(len(small)) % 5 == 0
    sigma = torch.linspace(0.1, 2.0, len(small))
    before = small.clone()
    result = select_rows(mask, small, lambda part, s: gaussian_blur(part, s, 5), sigma)
    assert torch.equal(small, before)
    assert torch.equal(result[~mask], small[~mask])
    assert torch.equal(result[mask], gaussian_blur(small, sigma, 5)[mask])
    nobody = torch.zeros_like(mask)
    assert select_rows(nobody, small, lambda part: solarize(part, 0.5)) is small
