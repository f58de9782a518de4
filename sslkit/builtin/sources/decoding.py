"""Encoded image to (H, W, C) uint8, with damage and oddities told apart.

Plain JPEGs go through torchvision's decoder where it exists, which gives the same pixels as
Pillow's (a test holds them together) in half the time; everything else goes through Pillow.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sslkit.interfaces import UnreadableImageError

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded (Pillow's own limit for a bomb)."""

_EXIF_ORIENTATION = 0x0112


class JPEGHeader(NamedTuple):
    """What the frame header of a JPEG file says."""

    height: int
    width: int
    components: int
    has_exif: bool


def decode_image(data: bytes | memoryview, channels: int) -> NDArray[np.uint8]:
    """Decodes an image file into (H, W, channels) uint8, upright according to its EXIF entry.

    channels: 1 (grey, ITU-R 601 luma) or 3 (RGB). 16-bit grey is scaled to 8 bits; palettes are
    looked up; CMYK is converted; transparency is dropped.
    Raises UnreadableImageError for anything that is not a whole image of at most MAX_PIXELS.
    """
    header = jpeg_header(data)
    if header is not None and not header.has_exif and _plain(header, channels):
        operator = _jpeg_operator()
        if operator is not None:
            return _decode_jpeg(operator, data, channels)
    return _decode_with_pillow(data, channels)


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """(height, width) of the upright image, from its header. Raises UnreadableImageError."""
    header = jpeg_header(data)
    if header is not None and not header.has_exif:
        return header.height, header.width
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = _orientation(image) >= 5
    except Exception as error:  # damaged files raise almost anything
        raise UnreadableImageError(_reason(error)) from error
    return (width, height) if turned else (height, width)


def jpeg_header(data: bytes | memoryview) -> JPEGHeader | None:
    """The frame header of a JPEG file; None for other files and for damaged headers.

    ITU-T T.81, B.2: segments of 0xFF, marker, two-byte length, up to a start-of-frame marker.
    """
    data = memoryview(data).cast("B")  # Arrow's buffers come as signed bytes
    if bytes(data[:2]) != b"\xff\xd8":
        return None
    position, has_exif = 2, False
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if data[position + 4] != 8:  # bits per sample
                return None
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
            return JPEGHeader(height, width, data[position + 9], has_exif)
        if marker == 0xE1 and bytes(data[position + 4 : position + 8]) == b"Exif":
            has_exif = True
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _plain(header: JPEGHeader, channels: int) -> bool:
    pixels = header.height * header.width
    return 0 < pixels <= MAX_PIXELS and (header.components, channels) in ((1, 1), (1, 3), (3, 3))


@cache
def _jpeg_operator() -> Callable[..., Any] | None:
    """torchvision's JPEG decoder; None in versions without one (its Python wrapper, which warns of
    the removal at every call, is passed by)."""
    import torch
    import torchvision  # noqa: F401 (registers the operator)

    return getattr(torch.ops.image, "decode_jpeg", None)


def _decode_jpeg(
    operator: Callable[..., Any], data: bytes | memoryview, channels: int
) -> NDArray[np.uint8]:
    import torch

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    mode, apply_exif = channels, False  # modes 1 and 3: grey and RGB
    try:
        decoded = operator(encoded, mode, apply_exif)
    except RuntimeError as error:
        raise UnreadableImageError(_reason(error)) from error
    pixels: NDArray[np.uint8] = decoded.permute(1, 2, 0).numpy()
    return pixels


def _decode_with_pillow(data: bytes | memoryview, channels: int) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImageError(f"{width} x {height} pixels, more than {MAX_PIXELS}")
            image.load()
            upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            pixels = np.array(_to_channels(upright, channels))
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # damaged files raise almost anything
        raise UnreadableImageError(_reason(error)) from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF entry says nothing about the pixels
        return 1


def _to_channels(image: Image.Image, channels: int) -> Any:
    """An image or array of 8-bit grey or RGB."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):  # 16-bit grey, in one of several guises
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((wide + 128) // 257).astype(np.uint8)
        return grey if channels == 1 else np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    """The first line of an error, without the memory addresses that Pillow prints and the place in
    its source that torchvision prints."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image file of a known format"
    lines = str(error).strip().splitlines()
    return re.sub(r"^decode_jpeg, .*?:\d+, ", "", lines[0]) if lines else type(error).__name__
