"""Encoded image to (H, W, C) uint8, with damage and oddities told apart.

Plain JPEGs go through torchvision's decoder where it exists, which gives the same pixels as
Pillow's (a test holds them together) in half the time; everything else goes through Pillow.

Only the formats that are listed are opened, whatever the ending of a file says: Pillow knows others
that start programs (EPS) or that nobody tests. Pixels whose range is not certain are unreadable
rather than black or white.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sslkit.api import UnreadableImageError
from sslkit.builtin.sources.native_messages import heard
from sslkit.errors import first_line_of

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, by Pillow's names."""
MAX_PIXELS = 1 << 26
"""Larger images (8192 x 8192) are refused before they are decoded: the largest takes some 500
MB."""

_LARGE = 1 << 24
"""Images with more pixels are decoded one at a time, however many threads there are."""
_MAX_TILE_PIXELS = 1 << 24
_MAX_SCANS = 200
"""Scans of a progressive JPEG; encoders write about ten, and each goes through the whole image."""
_STRIP_PIXELS = 1 << 20
"""Converted at a time, so that a large image is not in memory three times."""
_EXIF_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 322, 323, 339
"""Tags of TIFF."""
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)

_one_at_a_time = threading.Lock()

# Pillow warns of what is refused or is no matter here (sizes, odd metadata), with the path of its
# source in place of the file's. For good: `catch_warnings` cannot be used in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class JPEGHeader(NamedTuple):
    """What the frame header of a JPEG file says."""

    height: int
    width: int
    components: int
    has_exif: bool
    progressive: bool


def decode_image(
    data: bytes | memoryview, channels: int, name: Callable[[], str] | None = None
) -> NDArray[np.uint8]:
    """Decodes an image file into (H, W, channels) uint8, upright according to its EXIF entry.

    name: what to call it in a warning of damage that does not stop the decoder.
    channels: 1 (grey, ITU-R 601 luma) or 3 (RGB). 12- and 16-bit grey is scaled to 8 bits; palettes
    are looked up; CMYK is converted; transparency is dropped.
    Raises UnreadableImageError for anything that is not a whole image of at most MAX_PIXELS in one
    of FORMATS, and for signed, 32-bit and floating-point pixels, whose range a file does not say.
    """
    header = jpeg_header(data)
    if header is not None and header.progressive and _scans(data) > _MAX_SCANS:
        raise UnreadableImageError(f"a progressive JPEG of more than {_MAX_SCANS} scans")
    if header is not None and not header.has_exif and _plain(header, channels):
        operator = _jpeg_operator()
        if operator is not None:
            if header.height * header.width <= _LARGE:
                return _decode_jpeg(operator, data, channels, name)
            with _one_at_a_time:
                return _decode_jpeg(operator, data, channels, name)
    return _decode_with_pillow(data, channels)


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """(height, width) of the upright image, from its header. Raises UnreadableImageError."""
    header = jpeg_header(data)
    if header is not None and not header.has_exif:
        return header.height, header.width
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = _checked_size(image)  # first: Pillow may decode a PNG to read its EXIF
            # Pillow turns TIFFs by itself, and their size with them.
            turned = image.format != "TIFF" and _orientation(image) >= 5
    except UnreadableImageError:
        raise
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
            progressive = marker in _PROGRESSIVE
            return JPEGHeader(height, width, data[position + 9], has_exif, progressive)
        if marker == 0xE1 and bytes(data[position + 4 : position + 8]) == b"Exif":
            has_exif = True
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _scans(data: bytes | memoryview) -> int:
    """How often a start-of-scan marker occurs; inside coded pixels 0xFF is always followed by 0."""
    return bytes(data).count(b"\xff\xda")


def _turn(pixels: int) -> Any:
    """Waits for the turn of a large image."""
    return _one_at_a_time if pixels > _LARGE else nullcontext()


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
    operator: Callable[..., Any],
    data: bytes | memoryview,
    channels: int,
    name: Callable[[], str] | None,
) -> NDArray[np.uint8]:
    import torch

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    mode, apply_exif = channels, False  # modes 1 and 3: grey and RGB
    try:
        with heard() as said:
            decoded = operator(encoded, mode, apply_exif)
    except RuntimeError as error:
        raise UnreadableImageError(_reason(error)) from error
    if said and name is not None:
        warnings.warn(f"{name()}: {said[0][:200]}; it is used as it was decoded", stacklevel=3)
    pixels: NDArray[np.uint8] = decoded.permute(1, 2, 0).numpy()
    return pixels


def _decode_with_pillow(data: bytes | memoryview, channels: int) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = _checked_size(image)
            with _turn(width * height):
                highest, inverted = _grey_range(image)
                image.load()
                orientation = _orientation(image)
                pixels = _in_strips(image, channels, highest)
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # damaged files raise almost anything
        raise UnreadableImageError(_reason(error)) from error
    if inverted:
        np.subtract(255, pixels, out=pixels)
    return _upright(pixels, orientation)


def _checked_size(image: Image.Image) -> tuple[int, int]:
    """(width, height). Raises UnreadableImageError for an image that is too large to decode."""
    width, height = image.size
    most = MAX_PIXELS // 2 if image.format == "WEBP" else MAX_PIXELS  # libwebp holds four copies
    if width * height > most:
        raise UnreadableImageError(
            f"{width} x {height} pixels, more than {most:,}; make it smaller"
        )
    return width, height


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF entry says nothing about the pixels
        return 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What the EXIF entry says of a stored image, undone. pixels: (H, W, C)."""
    turned: dict[int, Callable[[], NDArray[np.uint8]]] = {
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.transpose(1, 0, 2),
        6: lambda: np.rot90(pixels, -1),
        7: lambda: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: np.rot90(pixels, 1),
    }
    return turned[orientation]().copy() if orientation in turned else pixels


def _grey_range(image: Image.Image) -> tuple[int, bool]:
    """(highest value of a grey pixel of more than 8 bits, whether it means black), from the header.

    Raises UnreadableImageError where the range is not certain, and for tiles that are bombs."""
    tags: Any = getattr(image, "tag_v2", {})
    if (tags.get(_TILE_WIDTH) or 0) * (tags.get(_TILE_LENGTH) or 0) > _MAX_TILE_PIXELS:
        raise UnreadableImageError(f"a TIFF with tiles of more than {_MAX_TILE_PIXELS:,} pixels")
    what = "8- or 16-bit unsigned pixels are read; convert it"
    if image.mode.startswith("F"):
        raise UnreadableImageError(f"floating-point pixels have no certain range; {what}")
    if 2 in tuple(tags.get(_SAMPLE_FORMAT) or ()):
        raise UnreadableImageError(f"signed integer pixels have no certain range; {what}")
    if image.mode == "I" and image.format != "PPM":  # a PGM of 16 bits, which Pillow scales
        raise UnreadableImageError(f"32-bit integer pixels have no certain range; {what}")
    if not image.mode.startswith("I"):
        return 255, False
    bits = max(tuple(tags.get(_BITS) or ()), default=16)
    return (1 << bits) - 1, tags.get(_PHOTOMETRIC) == 0


def _in_strips(image: Image.Image, channels: int, highest: int) -> NDArray[np.uint8]:
    """(H, W, channels), strip by strip."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // max(width, 1))
    if rows >= height:
        return np.array(_to_channels(image, channels, highest)).reshape(height, width, channels)
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        found = np.asarray(_to_channels(strip, channels, highest))
        pixels[top : top + rows] = found.reshape(-1, width, channels)
    return pixels


def _to_channels(image: Image.Image, channels: int, highest: int) -> Any:
    """An image or array of 8-bit grey or RGB."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):  # 12- or 16-bit grey, in one of several guises
        wide = np.asarray(image).astype(np.int32).clip(0, highest)
        grey = ((wide * 255 + highest // 2) // highest).astype(np.uint8)
        return grey if channels == 1 else np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBa", "La"):  # multiplied by their transparency
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    """The first line of an error, without the memory addresses that Pillow prints and the place in
    its source that torchvision prints."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image file of a known format ({', '.join(FORMATS)})"
    return re.sub(r"^decode_jpeg, .*?:\d+, ", "", first_line_of(error))
