"""The SimCLR augmentation alone: both views of images that are decoded already.

    SETTINGS                         what is compared: sizes, strengths, with or without blur
    augmentation_arms(setting)       -> [lightly, ours eager, ours compiled], Arm objects

lightly runs torchvision's transforms on one Pillow image after the other, as a loader worker does;
ours makes the same two views of a whole batch, drawing included, as a training step does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sslkit.builtin.augmentations import SimCLRAugmentation, SimCLRConfig
from sslkit.builtin.sources.arrays import ArrayReader
from sslkit.data.cached_split import CachedSplit
from sslkit.data.views import view_maker
from sslkit.randomness import SampleRandom

from .arms import Arm, Unavailable, of_calls
from .images import DATA_DIR, images_in_files, images_in_memory


@dataclass(frozen=True)
class Setting:
    """The same crops, colours and blur for all arms."""

    name: str
    title: str
    height: int
    width: int
    """Of the source images, pixels."""
    size: int
    """Side of the views, pixels."""
    num_images: int
    jitter_strength: float = 1.0
    blur: bool = True


SETTINGS = (
    Setting("cifar", "32 px, CIFAR settings, no blur", 32, 32, 32, 256, 0.5, blur=False),
    Setting("cifar-blur", "32 px, lightly's defaults, blur", 32, 32, 32, 256),
    Setting("photos-256", "256 to 224 px, blur", 256, 256, 224, 32),
    Setting("photos-500", "500 x 375 to 224 px, blur", 375, 500, 224, 32),
)


def augmentation_arms(setting: Setting, data_dir: Path = DATA_DIR) -> list[Arm]:
    """Arms whose block is one batch of `num_images` images, both views of each."""
    work = 2 * setting.num_images
    arms = {
        "lightly": lambda: _lightly(setting, data_dir),
        "sslkit": lambda: _ours(setting, data_dir, compiled=False),
        "sslkit compiled": lambda: _ours(setting, data_dir, compiled=True),
    }
    return [Arm(name, of_calls(setup), work, "views") for name, setup in arms.items()]


def _lightly(setting: Setting, data_dir: Path) -> Callable[[], object]:
    try:
        from lightly.transforms.simclr_transform import SimCLRTransform
    except ImportError as error:
        raise Unavailable("lightly is not installed: install the `parity` group") from error
    transform = SimCLRTransform(
        setting.size,
        cj_strength=setting.jitter_strength,
        gaussian_blur=0.5 if setting.blur else 0.0,
        normalize=None,  # ours normalises inside the backbone
    )
    images = [Image.fromarray(pixels) for pixels in _pixels(setting, data_dir)]
    _settle_allocator()
    # Stacked, as a loader hands them to the network.
    return lambda: [
        torch.stack(views) for views in zip(*(transform(image) for image in images), strict=True)
    ]


def _ours(setting: Setting, data_dir: Path, *, compiled: bool) -> Callable[[], object]:
    config = SimCLRConfig(
        size=setting.size,
        interpolation="bilinear",  # as torchvision's default
        jitter_strength=setting.jitter_strength,
        blur=setting.blur,
    )
    reader = ArrayReader(_pixels(setting, data_dir), None, None)
    store = CachedSplit(reader, max_corrupt_fraction=0.0, seed=0, num_threads=1)
    maker = view_maker(store, SimCLRAugmentation(config), torch.device("cpu"), compiled=compiled)
    indices = torch.arange(setting.num_images)
    _settle_allocator()
    epochs = iter(range(1_000_000_000))  # each call draws anew
    return lambda: maker.make(SampleRandom(0, "augment", next(epochs), indices))


def _settle_allocator() -> None:
    """Frees one large block, as every training step does: until it has seen one, glibc gives memory
    of this size back to the system at each turn, and fetching it again costs more than the work."""
    torch.empty(30 * 2**20, dtype=torch.uint8).fill_(0)


@cache
def _pixels(setting: Setting, data_dir: Path) -> NDArray[np.uint8]:
    """(N, H, W, 3)."""
    if setting.height == setting.width:
        images = images_in_memory(setting.height, setting.num_images, data_dir)
    else:
        images = images_in_files(setting.num_images, data_dir)
    opened = (images.open(i) for i in range(setting.num_images))
    side = (setting.width, setting.height)
    return np.stack([np.asarray(image.resize(side)) for image in opened])
