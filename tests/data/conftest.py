"""Readers, augmentations and files that the data tests share."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.api import Geometry, ImageAugmentation, ImageReader, UnreadableImageError, ViewSpec
from sslkit.nn.image import random_resized_crop_boxes

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


class ListReader(ImageReader):
    """Images of a list. A number instead of an image: that many OSErrors, then image 0; a string:
    unreadable for this reason."""

    def __init__(self, images, labels=None, image_size=None, channels=3):
        self.images = images
        self.channels = channels
        self.image_size = image_size
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.class_names = (
            None if labels is None else [f"class {i}" for i in range(max(labels) + 1)]
        )
        self.failures = {i: image for i, image in enumerate(images) if isinstance(image, int)}
        self.reads = 0

    def __len__(self):
        return len(self.images)

    def read(self, index):
        self.reads += 1
        image = self.images[index]
        if isinstance(image, str):
            raise UnreadableImageError(image)
        if isinstance(image, int):
            if self.failures[index] > 0:
                self.failures[index] -= 1
                raise OSError(5, "Input/output error")
            return self.images[0]
        return image

    def describe(self, index):
        return f"picture-{index}"

    def fingerprint(self):
        return "fixed"


class CropAugmentation(ImageAugmentation):
    """Random crops and mirroring, and a photometric part that only adds a drawn brightness."""

    def __init__(self, sizes=(16, 16), interpolation="bilinear", brightness=0.0):
        self.specs = tuple(ViewSpec(size) for size in sizes)
        self.interpolation = interpolation
        self.brightness = brightness

    @property
    def views(self):
        return self.specs

    def draw(self, random, sizes):
        drawn = []
        for view in range(len(self.specs)):
            own = random.substream(view)
            drawn.append(
                {
                    "box": random_resized_crop_boxes(own, sizes, (0.2, 1.0)),
                    "flip": own.uniform("flip", 1)[:, 0] < 0.5,
                    "shift": own.uniform("shift", 1)[:, 0] * self.brightness,
                }
            )
        return drawn

    def geometry(self, view, params, sizes):
        return Geometry(params["box"], params["flip"], self.specs[view].size, self.interpolation)

    def photometric(self, view, images, params):
        return (images + params["shift"][:, None, None, None]).clamp(0.0, 1.0)

    def targets(self, params):
        return {"flipped": params[0]["flip"].long()}


@pytest.fixture
def list_reader() -> type[ListReader]:
    return ListReader


@pytest.fixture
def crop_augmentation() -> type[CropAugmentation]:
    return CropAugmentation


@pytest.fixture
def photo() -> Callable[..., np.ndarray]:
    """photo(index, height, width): smooth content with an edge, unlike that of other indices."""

    def make(index: int, height: int = 40, width: int = 48, channels: int = 3) -> np.ndarray:
        generator = np.random.default_rng(index)
        coarse = generator.integers(0, 256, (5, 6, channels)).astype(np.float32)
        tensor = torch.from_numpy(coarse).permute(2, 0, 1)[None]
        smooth = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear")
        image = smooth[0].permute(1, 2, 0).numpy().copy()
        image[: height // 3, : width // 2] = generator.integers(0, 256, channels)
        return np.ascontiguousarray(image.round().astype(np.uint8))

    return make


@pytest.fixture
def encoded(photo) -> Callable[..., bytes]:
    """encoded(index, format, ...): an image file as bytes."""

    def make(index: int, kind: str = "PNG", height: int = 40, width: int = 48, **options) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(photo(index, height, width)).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def cifar() -> Path:
    folder = SHARED / "cifar10"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture
def photographs() -> Path:
    folder = SHARED / "imagenet_samples"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    return folder
