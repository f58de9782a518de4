"""Image files of every format that Pillow writes, damaged, mislabelled, and bombs."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import nasty
from .attempt import Attempt
from .oracle import MARKER
from .special import make_special
from .stock import Stock, pick

_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16")
_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".JPG", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
    ".pbm", ".jfif", ".jpe", ".pnm",
)  # fmt: skip
_OTHERS = (".eps", ".svg", ".pdf", ".heic", ".txt", ".psd", ".ico", "", ".png.txt", ".")


def make_images(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A folder of good images with a few that are not, and a command that reads it."""
    images = folder / "images"
    stock.copy(stock.images, images)
    changes = []
    for number in range(generator.choice([1, 1, 3, 8])):
        suffix = generator.choice(_SUFFIXES if generator.random() < 0.85 else _OTHERS)
        path = images / generator.choice("ab") / f"{number}-odd{suffix}"
        changes.append(_write_one(generator, path))
    if generator.random() < 0.2:
        changes.append(_odd_name(generator, images / "a"))
    source = (
        f"{{name: image_folder, train: images, max_corrupt_fraction: {generator.random():.2f}}}"
    )
    command = pick(generator, {"embed": 4, "pack": 2, "validate": 1, "run": 1.5})
    return Attempt(command, data_arguments(command, source, stock), "; ".join(changes)[:300])


def data_arguments(command: str, source: str, stock: Stock) -> list[str]:
    """The command on a data block."""
    recipe = str(stock.root / "tiny.yaml")
    return {
        "embed": ["embed", str(stock.run), source, "-O", "features.parquet"],
        "pack": ["pack", source, "--size", "16", "-O", "new.pack"],
        "validate": ["validate", recipe, "-o", f"data={source}"],
        "run": ["run", recipe, "-o", f"data={source}", "-o", "evaluate=[]"],
    }[command]


def _write_one(generator: random.Random, path: Path) -> str:
    what = pick(generator, {"damaged": 4, "format": 4, "bomb": 2, "trick": 2, "special": 1})
    if what == "special":
        return make_special(generator, path)
    if what == "bomb":
        name, make = generator.choice(list(_BOMBS.items()))
        path.write_bytes(make())
        return f"{path.name}: {name}"
    if what == "trick":
        name, data = generator.choice(list(_TRICKS.items()))
        path.write_bytes(data)
        return f"{path.name}: {name}"
    name, data = encoded_image(generator)
    if what == "damaged":
        data = nasty.change_bytes(generator, data)
    path.write_bytes(data)
    return f"{path.name}: {what} {name}"


def encoded_image(generator: random.Random) -> tuple[str, bytes]:
    """(format and mode, bytes) of an image in one of the formats that this Pillow writes."""
    Image.init()
    image = _picture(generator)
    formats = [name for name in Image.SAVE if name not in ("MPO", "HDF5", "GRIB", "BUFR")]
    for _ in range(20):
        name = generator.choice([*formats, "PNG", "JPEG", "TIFF", "GIF", "WEBP"])
        with suppress(Exception):  # not every format holds every mode
            buffer = io.BytesIO()
            image.save(buffer, name, **_options(generator, name, image))
            return f"{name} {image.mode} {image.size}", buffer.getvalue()
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return f"PNG of {image.mode}", buffer.getvalue()


def _picture(generator: random.Random) -> Any:
    size = generator.choice([(20, 18), (1, 1), (1, 300), (300, 1), (64, 64), (3, 2), (2000, 2)])
    noise = np.random.default_rng(generator.randrange(2**32)).integers(
        0, 256, (size[1], size[0], 3)
    )
    image = Image.fromarray(noise.astype(np.uint8))
    mode = generator.choice(_MODES)
    with suppress(ValueError):
        return (
            image.convert("L").convert(mode)
            if mode in ("I;16", "LA", "PA")
            else image.convert(mode)
        )
    return image


def _options(generator: random.Random, name: str, image: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if name in ("JPEG", "TIFF", "WEBP", "PNG") and generator.random() < 0.4:
        exif = Image.Exif()
        exif[0x0112] = generator.choice(
            [1, 3, 6, 8] if name == "TIFF" else [0, 1, 3, 6, 8, 9, 65535]
        )
        exif[0x010E] = nasty.text(generator)[:100]
        options["exif"] = exif.tobytes()
    if name == "JPEG":
        options |= {"quality": generator.choice([1, 75, 100]), "progressive": True}
        if generator.random() < 0.5:
            options["icc_profile"] = generator.randbytes(200)
    if name == "TIFF":
        options["compression"] = generator.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])
    if name in ("GIF", "TIFF", "WEBP", "PNG") and generator.random() < 0.3:
        options |= {"save_all": True, "append_images": [image] * generator.choice([1, 50])}
    if name == "PNG" and generator.random() < 0.3:
        options["transparency"] = 0
    return options


# --- Bombs: few bytes that say they are many pixels -----------------------------------------------


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(
    width: int, height: int, data: bytes, *chunks: bytes, bits: int = 8, kind: int = 2
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks)
        + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )  # fmt: skip


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    parts = [packer.compress(piece) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def _gif(width: int, height: int) -> bytes:
    size = struct.pack("<HH", width, height)
    return (
        b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b",\0\0\0\0" + size
        + b"\0\x02\x02L\x01\0;"
    )  # fmt: skip


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 154, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 100, 0, 0, 0, 0) + bytes(100)
    )  # fmt: skip


def _tiff(width: int, height: int, bits: int = 8, strips: int = 1) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1),
            (273, 4, 200), (277, 3, strips), (278, 4, height), (279, 4, 50)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)


def _jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


_BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG of 13,000 x 13,000, one bit": lambda: _png(
        13_000, 13_000, _zeros(13_000 * 1626), bits=1, kind=0
    ),
    "a PNG of 13,000 x 13,000": lambda: _png(13_000, 13_000, _zeros(13_000 * 39_001)),
    "a PNG of 13,000 x 13,000, 16 bits and alpha": lambda: _png(
        13_000, 13_000, b"x\x9c", bits=16, kind=6
    ),
    "a PNG of 2^31 x 1": lambda: _png(2**31 - 1, 1, _zeros(1000)),
    "a PNG of 0 x 0": lambda: _png(0, 0, _zeros(10)),
    "a PNG with a text of 200 MB": lambda: _png(
        4, 4, _zeros(52), _chunk(b"zTXt", b"k\0\0" + _zeros(200 << 20))
    ),
    "a PNG with a profile of 200 MB": lambda: _png(
        4, 4, _zeros(52), _chunk(b"iCCP", b"k\0\0" + _zeros(200 << 20))
    ),
    "a PNG with 300 MB for 4 x 4": lambda: _png(4, 4, _zeros(300 << 20)),
    "a GIF of 65,535 x 65,535": lambda: _gif(65_535, 65_535),
    "a GIF of 13,000 x 13,000": lambda: _gif(13_000, 13_000),
    "a BMP of 2^31": lambda: _bmp(2**31 - 1, 2**31 - 1),
    "a BMP of 13,000 x 13,000": lambda: _bmp(13_000, 13_000),
    "a TIFF of 2^32": lambda: _tiff(2**32 - 1, 2**32 - 1),
    "a TIFF of 13,000 x 13,000": lambda: _tiff(13_000, 13_000),
    "a TIFF with 65,535 bands": lambda: _tiff(100, 100, 8, 65_535),
    "a TIFF of floats": lambda: _tiff(13_000, 13_000, 32),
    "a JPEG of 65,500 x 65,500": lambda: _jpeg(65_500, 65_500),
    "a JPEG of 13,000 x 13,000": lambda: _jpeg(13_000, 13_000),
    "a PPM of 13,000 x 13,000": lambda: b"P6 13000 13000 255\n",
    "a PPM with a number of 100,000 digits": lambda: b"P6 " + b"9" * 100_000 + b" 1 255\n",
}
_EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
    + f"(%pipe%touch {MARKER}) (w) file\n".encode()
    + b"showpage\n%%EOF\n"
)
_TRICKS: dict[str, bytes] = {
    "an EPS program": _EPS,
    "an SVG with a link": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/>',
    "a PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "nothing": b"",
    "a page": b"<html></html>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "a JPEG marker": b"\xff\xd8",
    "a JPEG without end": b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\xff" * 5000,
    "a JPEG with 0 x 0": b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x00\x03\x01\x11\x00\xff\xd9",
    "an XPM": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c red",\n"a"};',
    "a list of files": b"../../etc/passwd\n",
    "a FITS": b"SIMPLE  =                    T".ljust(2880),
    "an icon with a PNG": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0",
}


def _odd_name(generator: random.Random, folder: Path) -> str:
    """A good image under a name that terminals, reports and tables do not expect."""
    names = (
        b"-o.png", b"new\nline.png", b"\x1b[31mred.png", b"not-utf8-\xff.png", b"\xe2\x80\xae.png",
        b"a" * 250 + b".png", b"%s%n.png", b"|pipe|.png", b"*.png", b" .png", b".png", b"<b>.png",
        "名前.png".encode(), b"'\"`.png", b"$(touch x).png", b"{a}.png",
    )  # fmt: skip
    name = generator.choice(names)
    source = next(folder.glob("0*.png"))
    os.link(source, os.fsencode(folder) + b"/" + name)
    return f"the name {name!r}"
