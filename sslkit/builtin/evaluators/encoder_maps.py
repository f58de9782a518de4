"""Feature maps of the encoder that an evaluator measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.api import Backbone, HasMasks, ImageReader, NoFeatureMapsError
from sslkit.builtin.evaluators.dense_data import annotated_images, read_image
from sslkit.errors import DataError, first_line_of

_BATCH = 32

Maps = Callable[[Tensor], Tensor]
"""(B, C, S, S) images in [0, 1] to (B, F, h, w)."""


def with_feature_maps(encoder: nn.Module) -> Backbone:
    """The encoder. Raises NoFeatureMapsError where it has no feature maps."""
    if not isinstance(encoder, Backbone) or not encoder.feature_stages:
        raise NoFeatureMapsError(f"the encoder {type(encoder).__name__} offers no feature maps")
    return encoder


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def check_images(
    encoder: Backbone, stages: Sequence[int], channels: int, size: tuple[int, int]
) -> None:
    """Raises NoFeatureMapsError where the encoder cannot take images of this (height, width)."""
    expected = len(encoder.preprocess.mean)
    if channels != expected:  # one channel would be spread over three without an error
        raise NoFeatureMapsError(
            f"the encoder takes images of {expected} channel(s), and the data has {channels}"
        )
    height, width = size
    try:
        with torch.no_grad():
            images = torch.zeros(1, channels, height, width, device=device_of(encoder))
            encoder.feature_maps(images, stages)
    except NoFeatureMapsError:
        raise
    except Exception as error:  # networks raise whatever they raise; the user gets one line
        raise NoFeatureMapsError(
            f"the encoder takes no images of {width} x {height} pixels: {first_line_of(error)}"
        ) from error


@dataclass(frozen=True)
class Source:
    """Feature maps of annotated images that are stretched to a square."""

    maps: Maps
    size: int
    """Side of the images, pixels."""
    device: torch.device

    def batches(self, reader: ImageReader) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """(B, F, h, w) float32 feature maps, and B masks (H, W) uint8 as they are, on the device,
        in the order of the images. Raises DataError."""

        def read(index: int) -> tuple[Tensor, Tensor]:
            return _read(reader, index)

        images: list[Tensor] = []
        masks: list[Tensor] = []
        for number, (pixels, mask) in enumerate(
            annotated_images(read, range(len(reader))), start=1
        ):
            images.append(self._stretched(pixels.to(self.device)))
            masks.append(mask.to(self.device))
            if len(images) == _BATCH or number == len(reader):
                with torch.no_grad():
                    maps = self.maps(torch.stack(images)).float()
                yield maps, masks
                images, masks = [], []

    def _stretched(self, pixels: Tensor) -> Tensor:
        """(C, H, W) uint8 to (C, size, size) float32 in [0, 1]."""
        image = pixels[None] / 255.0
        size = (self.size, self.size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        return image[0].clamp_(0.0, 1.0)


def _read(reader: ImageReader, index: int) -> tuple[Tensor, Tensor]:
    """Pixels (C, H, W) uint8, and the mask (H, W) uint8."""
    assert isinstance(reader, HasMasks)
    pixels, mask = read_image(reader, index), torch.from_numpy(reader.mask(index))
    if mask.shape != pixels.shape[1:]:
        raise DataError(
            f"{reader.describe(index)}: its mask has {mask.shape[1]} x {mask.shape[0]} pixels and "
            f"it has {pixels.shape[2]} x {pixels.shape[1]}; expected the same"
        )
    return pixels, mask
