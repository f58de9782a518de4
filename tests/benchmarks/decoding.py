"""Where the views of photographs come from: files, decoded in each epoch, or a pack of pixels.

Both arms make the same views of the same photographs (a pack holds them at 256 px), up to and
without the photometric part, in the calling thread. A third and a fourth arm crop decoded images
as the loader does it, with the byte kernel, and as it did before, in float (decision 0020).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sslkit.api import DataSource, Geometry, Slot
from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.sources.decoding import decode_image
from sslkit.builtin.sources.image_folder import ImageFolder
from sslkit.data.cached_split import CachedSplit
from sslkit.data.pack import Pack
from sslkit.data.pack_format import Settings
from sslkit.data.pack_writer import write_pack
from sslkit.data.resize import crop_view
from sslkit.data.views import view_maker
from sslkit.randomness import SampleRandom

from .arms import Arm, Unavailable, of_calls
from .images import DATA_DIR

Interpolation = Literal["bilinear", "bicubic"]

_CPU = torch.device("cpu")


def view_arms(data_dir: Path = DATA_DIR, *, num: int = 64, size: int = 224) -> list[Arm]:
    """Files against a pack: both views of `num` photographs, before jitter and blur."""
    return [
        Arm("files", of_calls(partial(_views, data_dir, num, size, packed=False)), float(num)),
        Arm("pack", of_calls(partial(_views, data_dir, num, size, packed=True)), float(num)),
    ]


def crop_arms(data_dir: Path = DATA_DIR, *, num: int = 64, size: int = 224) -> list[Arm]:
    """The byte kernel against float, bicubic: both crops of `num` decoded photographs."""
    crops = {"bytes": crop_view, "float": _crop_in_float}
    return [
        Arm(name, of_calls(partial(_crops, data_dir, num, size, crop)), float(num))
        for name, crop in crops.items()
    ]


def _views(data_dir: Path, num: int, size: int, *, packed: bool) -> Callable[[], object]:
    source: DataSource = _photographs(data_dir)
    if packed:
        folder = Path(tempfile.mkdtemp())
        try:
            slot: Slot[DataSource] = Slot(ImageFolder, "image_folder", source.config, "sslkit", "")
            settings = Settings(size=256, interpolation="bicubic")
            write_pack(slot, folder / "photographs", settings, num_threads=1)
            source = Pack(Pack.Config(file=folder / "photographs"))
            store = _store(source)
        finally:
            shutil.rmtree(folder)  # the mapping keeps the file
    else:
        store = _store(source)
    maker = view_maker(store, _Crops(size), _CPU)
    return lambda: maker.make(SampleRandom(0, "augment", 0, torch.arange(num)))


def _crops(
    data_dir: Path, num: int, size: int, crop: Callable[..., Tensor]
) -> Callable[[], object]:
    images = _decoded(data_dir, num)
    geometry = _geometry(images, size)

    def make() -> None:
        for view in geometry:
            boxes, flips = view.box.long().tolist(), view.flip.tolist()
            for image, box, flip in zip(images, boxes, flips, strict=True):
                crop(image, tuple(box), flip, size, view.interpolation)

    return make


def _crop_in_float(
    image: Tensor, box: tuple[int, int, int, int], flip: bool, size: int, how: Interpolation
) -> Tensor:
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width].to(torch.float32)
    view = functional.interpolate(crop, size=(size, size), mode=how, antialias=True)
    whole = view[0].round_().clamp_(0, 255).to(torch.uint8)
    return whole.flip(-1) if flip else whole


class _Crops(SimCLRAugmentation):
    """SimCLR's crops and flips, and no more."""

    def __init__(self, size: int) -> None:
        super().__init__(SimCLRAugmentation.Config(size=size))

    def photometric(self, view: int, images: Tensor, params: object) -> Tensor:
        return images


def _geometry(images: Sequence[Tensor], size: int) -> list[Geometry]:
    augmentation = _Crops(size)
    sizes = torch.tensor([image.shape[-2:] for image in images])
    params = augmentation.draw(SampleRandom(0, "augment", 0, torch.arange(len(images))), sizes)
    return [augmentation.geometry(view, params[view], sizes) for view in range(2)]


def _decoded(data_dir: Path, num: int) -> list[Tensor]:
    reader = _photographs(data_dir).open("train")
    assert reader is not None
    paths = [Path(reader.describe(index)) for index in range(num)]
    return [torch.from_numpy(decode_image(p.read_bytes(), 3)).permute(2, 0, 1) for p in paths]


def _photographs(data_dir: Path) -> ImageFolder:
    folder = data_dir / "imagenet_samples"
    if not folder.exists():
        raise Unavailable(f"the data folder has no {folder.name}")
    return ImageFolder(ImageFolder.Config(train=folder))


def _store(source: DataSource) -> CachedSplit:
    reader = source.open("train")
    assert reader is not None
    return CachedSplit(reader, max_corrupt_fraction=0.1, seed=0, num_threads=1)
