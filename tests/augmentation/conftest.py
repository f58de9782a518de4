"""Real photographs and noise, at the sizes that matter: 32 px, and 256 px for crops to 224."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from sslkit.api import Params
from sslkit.builtin.augmentations import SimCLRConfig
from sslkit.nn.jitter import JITTER_OPS

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "imagenet_samples"


def _photographs() -> list[Tensor]:
    from sklearn.datasets import load_sample_images

    images = [torch.from_numpy(image.copy()) for image in load_sample_images().images]
    return [image.permute(2, 0, 1) for image in images]  # two of 427 x 640


def _resized(image: Tensor, size: int) -> Tensor:
    from torchvision.transforms.functional import resize

    side = min(image.shape[-2:])
    return resize(image[:, :side, -side:], [size, size], antialias=True)


@pytest.fixture(scope="session")
def small_images() -> Tensor:
    """(24, 3, 32, 32) uint8: pieces of photographs and, in the last 8, noise."""
    generator = torch.Generator().manual_seed(0)
    pieces = [_resized(image, 128).unfold(1, 32, 32).unfold(2, 32, 32) for image in _photographs()]
    tiles = torch.cat([piece.permute(1, 2, 0, 3, 4).flatten(0, 1) for piece in pieces])[:16]
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return torch.cat([tiles, noise])


@pytest.fixture(scope="session")
def large_images() -> Tensor:
    """(4, 3, 256, 256) uint8: two photographs, noise, and flat grey with one white pixel."""
    generator = torch.Generator().manual_seed(0)
    photographs = [_resized(image, 256) for image in _photographs()]
    noise = torch.randint(0, 256, (3, 256, 256), generator=generator, dtype=torch.uint8)
    grey = torch.full((3, 256, 256), 77, dtype=torch.uint8)
    grey[:, 100, 31] = 255
    return torch.stack([*photographs, noise, grey])


@pytest.fixture(scope="session")
def imagenet_images() -> Tensor:
    """(8, 3, 256, 256) uint8 of the ImageNet samples, where a checkout has them beside it."""
    from PIL import Image

    paths = sorted(SAMPLES.glob("*/*"))[::25][:8] if SAMPLES.is_dir() else []
    if not paths:
        pytest.skip(f"no ImageNet samples in {SAMPLES.relative_to(SAMPLES.parents[3])}")
    arrays = [np.array(Image.open(path).convert("RGB")) for path in paths]
    return torch.stack([_resized(torch.from_numpy(a).permute(2, 0, 1), 256) for a in arrays])


def _replay(config: SimCLRConfig, image: Tensor, params: Params, row: int) -> Tensor:
    """The first view of one image with torchvision's functionals and the drawn parameters."""
    settings = config.blocks()[0]
    value = {name: tensor[row].tolist() for name, tensor in params.items()}
    mode = InterpolationMode[settings.interpolation.upper()]
    top, left, height, width = map(int, value["box"])
    side = [settings.size, settings.size]
    view = reference.resized_crop(image, top, left, height, width, side, mode, antialias=True)
    view = view.clamp(0, 1)
    view = reference.hflip(view) if value["flip"] else view
    if value.get("rotate"):
        view = reference.rotate(view, value["degrees"], InterpolationMode.BILINEAR, fill=0)
    if value.get("jitter"):
        for position in value["jitter_order"]:
            name = JITTER_OPS[position]
            if name in value:
                view = getattr(reference, f"adjust_{name}")(view, value[name])
    if value.get("grayscale"):
        view = reference.rgb_to_grayscale(view, num_output_channels=3)
    if value.get("blur"):
        kernel = settings.blur_kernel_size
        view = reference.gaussian_blur(view, [kernel, kernel], [value["sigma"]] * 2)
    return reference.solarize(view, settings.solarize_threshold) if value.get("solarize") else view


@pytest.fixture(scope="session")
def replay() -> Callable[[SimCLRConfig, Tensor, Params, int], Tensor]:
    """`replay(config, image, params, row)`."""
    return _replay
