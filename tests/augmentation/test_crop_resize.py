"""`crop_resize` and `random_resized_crop_boxes` against torchvision, image by image."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from sslkit.nn.image import crop_resize, random_resized_crop_boxes
from sslkit.randomness import SampleRandom

TOLERANCE = 1 / 255


def random_for(count: int, seed: int = 0) -> SampleRandom:
    return SampleRandom(seed, "test", 0, torch.arange(count))


def boxes_for(images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = random_for(len(images), seed)
    sizes = torch.tensor([images.shape[-2:]]).expand(len(images), 2)
    return random_resized_crop_boxes(random, sizes), random.uniform("flip", 1)[:, 0] < 0.5


def one_by_one(images: Tensor, box: Tensor, flip: Tensor, size: int, interpolation: str) -> Tensor:
    mode = InterpolationMode[interpolation.upper()]
    results = []
    for image, edges, mirrored in zip(images, box.int().tolist(), flip.tolist(), strict=True):
        floats = image.float() / 255 if image.dtype == torch.uint8 else image
        view = reference.resized_crop(floats, *edges, [size, size], mode, antialias=True)
        results.append(view.flip(-1) if mirrored else view)
    return torch.stack(results).clamp(0, 1)


def largest_difference(images: Tensor, box: Tensor, flip: Tensor, size: int, mode: str) -> float:
    ours = crop_resize(images, box, flip, size, mode)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert ours.shape == (*images.shape[:2], size, size)
    assert ours.min() >= 0.0
    assert ours.max() <= 1.0
    return (ours - one_by_one(images, box, flip, size, mode)).abs().max().item()


both_modes = pytest.mark.parametrize("mode", ["bilinear", "bicubic"])


@both_modes
def test_small_images(small_images, mode):
    for seed in range(4):
        box, flip = boxes_for(small_images, seed)
        assert largest_difference(small_images, box, flip, 32, mode) < 1e-5


@both_modes
def test_large_images(large_images, mode):
    box, flip = boxes_for(large_images)
    assert largest_difference(large_images, box, flip, 224, mode) < 1e-5


@both_modes
def test_imagenet_images(imagenet_images, mode):
    box, flip = boxes_for(imagenet_images)
    assert largest_difference(imagenet_images, box, flip, 224, mode) < 1e-5
    quantised = imagenet_images.float().mul(1 / 255)
    assert largest_difference(quantised, box, flip, 96, mode) < 1e-5


@both_modes
@pytest.mark.parametrize("size", [1, 5, 8, 31, 32, 33, 64])
def test_odd_boxes_and_sizes(small_images, mode, size):
    """Whole image, single pixels, lines, boxes at each border, primes; up and down."""
    edges = [(0, 0, 32, 32), (0, 0, 1, 1), (31, 31, 1, 1), (5, 0, 1, 32), (0, 9, 32, 1)]
    edges += [(0, 0, 7, 13), (25, 19, 7, 13), (3, 3, 29, 23), (16, 0, 16, 32), (1, 2, 2, 3)]
    box = torch.tensor(edges, dtype=torch.float32)
    flip = torch.arange(len(box)) % 2 == 0
    assert largest_difference(small_images[-len(box) :], box, flip, size, mode) < 1e-5


@both_modes
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_and_shapes(mode, channels):
    images = torch.rand(3, channels, 37, 20)
    box = torch.tensor([[0, 0, 37, 20], [10, 3, 20, 11], [36, 0, 1, 20]], dtype=torch.float32)
    flip = torch.tensor([True, False, True])
    assert largest_difference(images, box, flip, 16, mode) < 1e-5


def test_the_8_bit_path_of_torchvision(small_images):
    """Torchvision rounds uint8 results: at most one step apart."""
    box, flip = boxes_for(small_images)
    ours = crop_resize(small_images, box, flip, 32, "bilinear")
    for image, edges, mirrored, mine in zip(
        small_images, box.int().tolist(), flip, ours, strict=True
    ):
        theirs = reference.resized_crop(image, *edges, [32, 32], antialias=True).float() / 255
        theirs = theirs.flip(-1) if mirrored else theirs
        assert (mine - theirs).abs().max() <= TOLERANCE


def test_identity_is_exact(small_images):
    box = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(len(small_images), 4)
    same = crop_resize(small_images, box, torch.zeros(len(box), dtype=torch.bool), 32)
    assert torch.equal((same * 255).round().to(torch.uint8), small_images)


def test_chunks_do_not_show(large_images):
    """More images than fit in one chunk, and an empty batch."""
    images = large_images.repeat(3, 1, 1, 1)
    box, flip = boxes_for(images)
    whole = crop_resize(images, box, flip, 64)
    single = [
        crop_resize(images[i : i + 1], box[i : i + 1], flip[i : i + 1], 64) for i in range(12)
    ]
    assert torch.equal(whole, torch.cat(single))
    assert crop_resize(images[:0], box[:0], flip[:0], 64).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("sizes", [(375, 500), (32, 32), (1, 1), (8, 60), (60, 8)])
def test_boxes_are_whole_and_inside(sizes):
    box = random_resized_crop_boxes(random_for(2000), torch.tensor([sizes]).expand(2000, 2))
    top, left, height, width = box.unbind(1)
    assert torch.equal(box, box.round())
    assert (top.min(), left.min()) >= (0, 0)
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= sizes[0]
    assert (left + width).max() <= sizes[1]


@pytest.mark.parametrize("sizes", [(375, 500), (500, 333), (32, 32)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14)])
def test_boxes_are_distributed_as_torchvisions(sizes, scale):
    ratio = (3 / 4, 4 / 3)
    ours = random_resized_crop_boxes(
        random_for(10000), torch.tensor([sizes]).expand(10000, 2), scale
    )
    torch.manual_seed(0)
    image = torch.empty(1, *sizes)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(3000)]
    theirs = torch.tensor(drawn, dtype=torch.float32)

    def statistics(box: Tensor) -> dict[str, Tensor]:
        top, left, height, width = box.unbind(1)
        position = {"top": top, "left": left}
        return {"area": height * width, "aspect": (width / height).log(), **position}

    for name, values in statistics(ours).items():
        result = ks_2samp(values.numpy(), statistics(theirs)[name].numpy())
        assert result.pvalue > 1e-3, name


def test_area_and_aspect_are_uniform_where_every_box_fits():
    """Small boxes always fit: area uniform, log-aspect uniform, to rounding of the edges."""
    box = random_resized_crop_boxes(
        random_for(10000), torch.tensor([[4000, 4000]]).expand(10000, 2), (0.1, 0.3), (0.5, 2.0)
    )
    area = box[:, 2] * box[:, 3] / 4000**2
    aspect = (box[:, 3] / box[:, 2]).log() / math.log(2)
    for values, low, high in ((area, 0.1, 0.3), (aspect, -1.0, 1.0)):
        counts = torch.histc((values - low) / (high - low), bins=10, min=0, max=1)
        assert ((counts - 1000).square() / 1000).sum() < 33.7  # chi-square, 9 dof, p = 1e-4


def test_fallback_is_torchvisions():
    """No try fits an image 1 pixel high that must be at most 4:3 wide."""
    for height, width in ((1, 200), (200, 1), (2, 300)):
        box = random_resized_crop_boxes(
            random_for(5), torch.tensor([[height, width]] * 5), (0.5, 1.0)
        )
        image = torch.empty(1, height, width)
        expected = RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3])
        assert box.tolist() == [list(expected)] * 5


def test_each_sample_has_its_own_size():
    sizes = torch.tensor([[32, 32], [375, 500], [500, 375], [10, 400]])
    together = random_resized_crop_boxes(random_for(4), sizes)
    for row in range(4):
        alone = random_resized_crop_boxes(
            random_for(4).select(slice(row, row + 1)), sizes[row : row + 1]
        )
        assert torch.equal(alone[0], together[row])
