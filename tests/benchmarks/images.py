"""The images that all arms of a group are fed: the same pixels, in memory or in the same files.

Real ones where the data folder has them (`cifar10/train.parquet`, `imagenet_samples/`), otherwise
scenes of the `synthetic` source. Which it was stands in the results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.api import DataSource, DataSourceConfig, ImageReader
from sslkit.builtin.sources.arrays import ArrayReader
from sslkit.builtin.sources.image_files import FileReader
from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.host.plugins import load_plugins
from sslkit.host.registry import Entry, Registry
from sslkit.recipe import parse_recipe

DATA_DIR = Path(__file__).parents[3] / "shared" / "data"
_RENDERED = 256
_NUM_CLASSES = 10


@dataclass(frozen=True)
class Images:
    """A data set as both sides take it."""

    block: str
    """The `data` block of a recipe."""
    num: int
    open: Callable[[int], Image.Image]
    """Image i for Pillow: decoded here where it is a file."""
    description: str


def images_in_memory(size: int, num: int, data_dir: Path = DATA_DIR) -> Images:
    """`num` uint8 images of one size, in memory: CIFAR-10 at 32 px, photographs above 64 px."""
    pixels, description = _pixels(size, num, data_dir)
    block = f"{{name: benchmark_memory, size: {size}, num: {num}, folder: '{data_dir}'}}"
    return Images(block, num, PixelOpener(pixels), f"{num:,} {description}, uint8 in memory")


def images_in_files(num: int, data_dir: Path = DATA_DIR) -> Images:
    """`num` JPEG files of photographs of several sizes; fewer files, repeated, where there are
    not as many."""
    paths, description = _photo_files(data_dir)
    repeated = [paths[i % len(paths)] for i in range(num)]
    block = f"{{name: benchmark_files, num: {num}, folder: '{data_dir}'}}"
    return Images(block, num, FileOpener(repeated), f"{num:,} {description}, JPEG files")


class PixelOpener:
    """A class and no closure, so that worker processes can be started in any way."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class FileOpener:
    """Opens and decodes, as torchvision's `ImageFolder` does."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __call__(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


# --- As data sources ------------------------------------------------------------------------------


class MemoryImages(DataSource):
    """`images_in_memory` as a data source of recipes."""

    class Config(DataSourceConfig):
        """What identifies the images."""

        size: int
        num: int
        folder: Path

    config: Config

    def open(self, split: Literal["train", "test"]) -> ImageReader | None:
        if split == "test":
            return None
        pixels, _ = _pixels(self.config.size, self.config.num, self.config.folder)
        labels = np.arange(len(pixels)) % _NUM_CLASSES
        return ArrayReader(pixels, labels, [str(i) for i in range(_NUM_CLASSES)])


class PhotoFiles(DataSource):
    """`images_in_files` as a data source of recipes."""

    class Config(DataSourceConfig):
        """What identifies the files."""

        num: int
        folder: Path

    config: Config

    def open(self, split: Literal["train", "test"]) -> ImageReader | None:
        if split == "test":
            return None
        paths, _ = _photo_files(self.config.folder)
        root = paths[0].anchor
        names = [str(paths[i % len(paths)].relative_to(root)) for i in range(self.config.num)]
        labels = np.arange(self.config.num) % _NUM_CLASSES
        return FileReader(Path(root), names, 3, labels, [str(i) for i in range(_NUM_CLASSES)], {})


@cache
def registry() -> Registry:
    """The components of all installed plugins, the two sources above and a part of `overhead`."""
    ours = {
        ("dataset", "benchmark_memory"): f"{__name__}:MemoryImages",
        ("dataset", "benchmark_files"): f"{__name__}:PhotoFiles",
        ("backbone", "benchmark_mean"): f"{__package__}.overhead:MeanColour",
    }
    entries = [
        Entry(kind, name, target, "sslkit-benchmarks", "0") for (kind, name), target in ours.items()
    ]
    return Registry([*load_plugins().registry.entries(), *entries])


# --- Pixels ---------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _pixels(size: int, num: int, data_dir: Path) -> tuple[NDArray[np.uint8], str]:
    """(N, H, W, 3) and what they are."""
    cifar = data_dir / "cifar10" / "train.parquet"
    if size == 32 and cifar.is_file():
        return _cifar(cifar, num), "images of CIFAR-10 (JPEG)"
    if size > 64 and (data_dir / "imagenet_samples").is_dir():
        paths, _ = _photo_files(data_dir)
        photos = np.stack([_square(path, size) for path in paths])
        return _repeated(photos, num), f"images of {len(photos)} ImageNet photographs at {size} px"
    scenes = _scenes(min(num, _RENDERED), size)
    return _repeated(scenes, num), f"images of {len(scenes)} scenes of `synthetic` at {size} px"


def _cifar(path: Path, num: int) -> NDArray[np.uint8]:
    text = f"data: {{name: parquet, train: '{path}'}}\n" + _REST
    reader = parse_recipe(text, "benchmark").data.build().open("train")
    assert reader is not None
    pixels = np.stack([reader.read(i) for i in range(min(num, len(reader)))])
    return _repeated(pixels, num)


_REST = """\
name: images
augmentation: {name: simclr, size: 32}
backbone: {name: timm, model: resnet10t}
method: {name: simclr}
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 1, batch_size: 2}
tracking: {name: none}
"""


def _scenes(num: int, size: int) -> NDArray[np.uint8]:
    reader = Synthetic(Synthetic.Config(num_train=num, num_test=0, size=size)).open("train")
    assert reader is not None
    return np.stack([reader.read(i) for i in range(num)])


def _square(path: Path, size: int) -> NDArray[np.uint8]:
    """A photograph with its shorter side resized and its centre cut out, as packs hold it."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _repeated(pixels: NDArray[np.uint8], num: int) -> NDArray[np.uint8]:
    return pixels[np.arange(num) % len(pixels)]


@cache
def _photo_files(data_dir: Path) -> tuple[list[Path], str]:
    """JPEG files and what they are; scenes written to a temporary folder where there are none."""
    folder = data_dir / "imagenet_samples"
    if folder.is_dir():
        paths = sorted(path.absolute() for path in folder.rglob("*.JPEG"))
        return paths, f"of {len(paths)} ImageNet photographs"
    target = Path(tempfile.mkdtemp(prefix="sslkit-benchmarks-"))
    paths = [target / f"{i}.jpg" for i in range(16)]
    for i, (path, scene) in enumerate(zip(paths, _scenes(len(paths), 500), strict=True)):
        # Several sizes, as photographs have: images of one size would be kept in memory, decoded.
        Image.fromarray(scene[: 375 - 4 * (i % 5)]).save(path, quality=90)
    return paths, f"of {len(paths)} scenes of `synthetic`, about 500 x 375 px"
