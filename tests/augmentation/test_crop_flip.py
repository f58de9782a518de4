"""Random resized crop and flip alone."""

from __future__ import annotations

import pytest
import torch

from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.crop_flip import CropFlip
from sslkit.randomness import SampleRandom

SIZES = torch.tensor([[40, 60]]).expand(300, 2)


def test_it_is_the_crop_and_the_flip_of_the_other_augmentation() -> None:
    random = SampleRandom(0, "any", 3, torch.arange(300))
    crop = CropFlip(CropFlip.Config(size=32, num_views=2))
    other = SimCLRAugmentation(SimCLRAugmentation.Config(size=32))
    assert crop.views == other.views
    mine, theirs = crop.draw(random, SIZES), other.draw(random, SIZES)
    for view in range(2):
        a, b = crop.geometry(view, mine[view], SIZES), other.geometry(view, theirs[view], SIZES)
        assert torch.equal(a.box, b.box)
        assert torch.equal(a.flip, b.flip)
        assert (a.size, a.interpolation) == (b.size, b.interpolation)
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(crop.photometric(0, images, mine[0]), images)


def test_crops_keep_their_range_and_flips_their_rate() -> None:
    random = SampleRandom(0, "any", 0, torch.arange(300))
    crop = CropFlip(CropFlip.Config(size=32, crop_scale=(0.5, 0.6), flip=0.0))
    (params,) = crop.draw(random, SIZES)
    area = params["box"][:, 2] * params["box"][:, 3] / (40 * 60)
    assert 0.45 < float(area.min()) <= float(area.max()) < 0.66  # whole pixels
    assert not params["flip"].any()
    with pytest.raises(ValueError, match="crop_scale"):
        CropFlip.Config(size=32, crop_scale=(0.5, 1.5))
    with pytest.raises(ValueError, match="crop_ratio"):
        CropFlip.Config(size=32, crop_ratio=(2.0, 1.0))
