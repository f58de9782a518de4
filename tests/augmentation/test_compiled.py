"""The augmentation under torch.compile: the same views, in blocks of fixed size."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import Params
from sslkit.builtin.augmentations import SimCLRAugmentation, SimCLRConfig
from sslkit.nn.chunked import in_blocks
from sslkit.nn.image import crop_resize
from sslkit.randomness import SampleRandom

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
    ),
    pytest.mark.timeout(600),
]

EVERYTHING = {"rotation_degrees": 25, "rotation_probability": 0.6, "solarize_probability": 0.3}


class Views:
    """The first view of images, compiled and not."""

    def __init__(self, images: Tensor, rows: int, **fields: Any) -> None:
        self.config = SimCLRConfig.model_validate({"num_views": 1, **fields})
        self.images, self.rows = images, rows
        self._augmentation = SimCLRAugmentation(self.config)
        torch._dynamo.reset()
        self._compiled = torch.compile(self._make, fullgraph=True, dynamic=False)

    def draw(self, chosen: Tensor) -> Params:
        random, sizes = SampleRandom(0, "augment", 3, chosen), self._sizes(chosen)
        return self._augmentation.draw(random, sizes)[0]

    def _sizes(self, chosen: Tensor) -> Tensor:
        return torch.tensor([self.images.shape[-2:]]).expand(len(chosen), 2)

    def _make(self, images: Tensor, box: Tensor, flip: Tensor, params: Params) -> Sequence[Tensor]:
        size, interpolation = self.config.size, self.config.interpolation
        cropped = crop_resize(images, box, flip, size, interpolation)
        return (self._augmentation.photometric(0, cropped, params),)

    def __call__(self, chosen: Tensor, *, compiled: bool = True) -> Tensor:
        """The views of some of the images."""
        params = self.draw(chosen)
        crop = self._augmentation.geometry(0, params, self._sizes(chosen))
        arguments = (self.images[chosen], crop.box, crop.flip, params)
        if not compiled:
            return self._make(*arguments)[0]
        return in_blocks(self._compiled, arguments, len(chosen), self.rows)[0]


def check(views: Views, replay: Any) -> None:
    """Equal to eager mode and to torchvision; and in whichever batch a sample stands."""
    everybody = torch.arange(len(views.images))
    whole = views(everybody)
    # A rotation reads between pixels; where exactly is rounded in another way.
    tolerance = 1e-5 if views.config.rotation_degrees == 0.0 else 1e-4
    assert (whole - views(everybody, compiled=False)).abs().max() < tolerance
    params = views.draw(everybody)
    for row, image in enumerate(views.images):
        expected = replay(views.config, image.float() / 255, params, row)
        assert (whole[row] - expected).abs().max() <= 1 / 255, row
    some = everybody.flip(0)[:-1:2]
    assert torch.equal(views(some), whole[some])
    assert torch.equal(views(some[1:2]), whole[some[1:2]])


@pytest.mark.slow  # 17 seconds
def test_small_images(small_images, replay):
    check(Views(small_images, 8, size=32, interpolation="bilinear", blur=False), replay)


@pytest.mark.slow
def test_small_images_with_everything(small_images, replay):
    check(Views(small_images, 8, size=32, blur_kernel=7, **EVERYTHING), replay)


@pytest.mark.slow  # a minute each, here and below
@pytest.mark.parametrize(("rows", "interpolation"), [(1, "bilinear"), (3, "bicubic")])
def test_large_images(large_images, replay, rows, interpolation):
    images = large_images.repeat(3, 1, 1, 1)  # each with parameters of its own
    further = EVERYTHING if interpolation == "bicubic" else {}
    check(Views(images, rows, size=224, interpolation=interpolation, **further), replay)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "fields"),
    [(4, {"hue": 0, "saturation": 0, "grayscale_probability": 0}), (1, {"contrast": 0})],
    ids=["no color", "no contrast"],
)
def test_without_some_operations(small_images, replay, fields, rows):
    check(Views(small_images, rows, size=24, **fields), replay)


@pytest.mark.slow
def test_images_that_are_not_rgb(small_images):
    fields = {"hue": 0, "saturation": 0, "grayscale_probability": 0}
    views = Views(small_images[:, :2], 8, size=32, **fields)
    everybody = torch.arange(len(small_images))
    assert (views(everybody) - views(everybody, compiled=False)).abs().max() < 1e-5
