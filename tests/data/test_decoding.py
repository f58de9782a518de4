"""Decoding: pixels as Pillow gives them, every colour mode, and every kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sslkit.builtin.sources import decoding
from sslkit.builtin.sources.decoding import decode_image, image_size, jpeg_header
from sslkit.interfaces import UnreadableImageError


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"quality": 30}, {"progressive": True}, {"subsampling": 0}]
)
def test_jpeg_pixels_equal_pillow(encoded, options):
    for index in range(5):
        data = encoded(index, "JPEG", 41 + index, 53, **options)
        expected = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(decode_image(data, 3), expected)
        assert image_size(data) == expected.shape[:2]


def test_jpeg_pixels_equal_pillow_on_photographs(photographs):
    for path in sorted(photographs.glob("*/*"))[::20]:
        data = path.read_bytes()
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(decode_image(data, 3), expected)


def test_without_torchvisions_decoder_pillow_takes_over(encoded, monkeypatch):
    data = encoded(0, "JPEG")
    fast = decode_image(data, 3)
    monkeypatch.setattr(decoding, "_jpeg_operator", lambda: None)
    assert np.array_equal(decode_image(data, 3), fast)


def test_buffers_of_signed_bytes_are_read_as_unsigned(encoded):
    data = encoded(0, "JPEG")
    assert jpeg_header(memoryview(data).cast("b")) == jpeg_header(data)
    assert jpeg_header(data) == (40, 48, 3, False)


def test_modes_become_grey_or_rgb(photo):
    rgb = Image.fromarray(photo(0))
    grey = np.asarray(rgb.convert("L"))
    palette = rgb.quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = bytes(range(16))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(7)
    cmyk = rgb.convert("CMYK")
    for image, kind, expected in (
        (rgb, "PNG", np.asarray(rgb)),
        (rgb.convert("L"), "PNG", np.repeat(grey[:, :, None], 3, 2)),
        (rgb.convert("L"), "JPEG", None),
        (palette, "PNG", np.asarray(palette.convert("RGB"))),
        (see_through, "PNG", np.asarray(palette.convert("RGB"))),
        (palette, "GIF", np.asarray(palette.convert("RGB"))),
        (alpha, "PNG", np.asarray(rgb)),
        (rgb.convert("LA"), "PNG", np.repeat(grey[:, :, None], 3, 2)),
        (cmyk, "TIFF", np.asarray(cmyk.convert("RGB"))),
        (cmyk, "JPEG", None),
        (rgb.convert("1"), "PNG", None),
    ):
        data = saved(image, kind)
        if expected is None:
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode_image(data, 3), expected), (image.mode, kind)
        single = decode_image(data, 1)
        assert single.shape == (40, 48, 1)
        assert single.flags.c_contiguous
    assert np.array_equal(decode_image(saved(rgb, "PNG"), 1)[:, :, 0], grey)
    compressed = saved(rgb.convert("L"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(compressed)))
    assert np.array_equal(decode_image(compressed, 1)[:, :, 0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(channels):
    wide = np.array([[0, 128, 129, 257], [32896, 65279, 65407, 65535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 1], [128, 254, 255, 255]])
    for kind in ("PNG", "TIFF"):
        pixels = decode_image(saved(Image.fromarray(wide), kind), channels)
        assert pixels.shape == (2, 4, channels)
        assert np.array_equal(pixels[:, :, 0], expected)
        assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_honoured(photo, orientation, kind):
    rgb = Image.fromarray(photo(3, 32, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(rgb, kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    # What the EXIF standard says: where the 0th row and column of the stored image belong.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    assert np.array_equal(decode_image(data, 3), upright)
    assert image_size(data) == upright.shape[:2]


def png_header(width, height):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg_of_size(data, height, width):
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def test_damage_is_unreadable_with_a_reason(encoded):
    jpeg, png = encoded(0, "JPEG", 200, 300), encoded(0, "PNG", 200, 300)
    for name, data in {
        "empty": b"",
        "text": b"this is not an image\n" * 20,
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "JPEG header alone": jpeg[:100],
        "JPEG marker alone": b"\xff\xd8",
        "truncated PNG": png[: len(png) // 2],
        "PNG without its end": png[:-60],
        "PNG bomb": png_header(60000, 60000),
        "JPEG bomb": jpeg_of_size(jpeg, 65000, 65000),
        "JPEG without height": jpeg_of_size(jpeg, 0, 300),
        "float TIFF": saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    }.items():
        for channels in (1, 3):
            with pytest.raises(UnreadableImageError) as caught:
                decode_image(data, channels)
            assert str(caught.value), name
            assert "\n" not in str(caught.value)
            assert "0x" not in str(caught.value)
            assert ".cpp" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_never_raise_anything_else(encoded):
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"):
        data = np.frombuffer(encoded(0, kind), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            places = generator.integers(0, min(len(data), 400), 4)
            damaged[places] = generator.integers(0, 256, 4)
            try:
                pixels = decode_image(damaged.tobytes(), 3)
            except UnreadableImageError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
