"""Decoding: pixels as Pillow gives them, every colour mode, and every kind of damage."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.api import UnreadableImageError
from sslkit.builtin.sources import decoding
from sslkit.builtin.sources.decoding import decode_image, image_size, jpeg_header


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
    assert jpeg_header(data) == (40, 48, 3, False, False)


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_images_of_one_row_can_become_tensors(orientation, shape):
    """numpy calls a row that was turned round contiguous; torch refuses its negative stride."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(5 * 3, dtype=np.uint8).reshape(-1, 3)[: shape[0] * shape[1]]
    data = saved(Image.fromarray(pixels.reshape(*shape, 3)), "PNG", exif=exif)
    found = torch.from_numpy(decode_image(data, 3))
    assert found.shape[:2] == (shape if orientation < 5 else shape[::-1])


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


# --- Files from strangers -------------------------------------------------------------------------


def test_only_the_listed_formats_are_opened(encoded, tmp_path, monkeypatch):
    """An EPS file would start Ghostscript, whatever it is called."""
    asked = tmp_path / "asked"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {asked}\necho 10.0\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    others = {"EPS": eps}
    for kind in ("ICO", "TGA", "PCX", "PDF", "JPEG2000", "SGI", "DDS", "ICNS", "SPIDER", "AVIF"):
        try:
            others[kind] = encoded(0, kind, 32, 32)
        except (OSError, KeyError, ValueError):
            continue  # this Pillow cannot write it
    assert len(others) > 4
    for kind, data in others.items():
        for read in (lambda data: decode_image(data, 3), image_size):
            with pytest.raises(UnreadableImageError) as caught:
                read(data)
            assert not asked.exists(), kind
            assert "known format (BMP, GIF, JPEG, PNG" in str(caught.value)


def tiff(pixels, **tags):
    from PIL import TiffImagePlugin

    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    return saved(Image.fromarray(pixels), "TIFF", tiffinfo=info)


def raw_tiff(data, width, height, bits, photometric=1, sample_format=1):
    """A grey TIFF of one strip, as the TIFF 6.0 specification has it, big-endian."""
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    directory = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        stored = struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        directory += struct.pack(">HHI", tag, kind, 1) + stored
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + directory + bytes(4)


def test_pixels_without_a_certain_range_are_unreadable():
    ramp = np.arange(64).reshape(8, 8)
    signed_bytes = ramp.astype(np.int8)
    for name, data, reason in (
        ("int32", saved(Image.fromarray(ramp.astype(np.int32)), "TIFF"), "integer pixels"),
        ("int16", raw_tiff(ramp.astype(">i2").tobytes(), 8, 8, 16, 1, 2), "signed integer"),
        ("int8", raw_tiff(signed_bytes.tobytes(), 8, 8, 8, 1, 2), "signed integer"),
        ("float", saved(Image.fromarray(ramp.astype(np.float32)), "TIFF"), "floating-point"),
        ("PFM", saved(Image.fromarray(ramp.astype(np.float32)), "PPM"), "floating-point"),
    ):
        for channels in (1, 3):
            with pytest.raises(
                UnreadableImageError, match=f"{reason}.* no certain range; 8- or 16"
            ):
                decode_image(data, channels)
        assert name


def test_twelve_bits_inverted_grey_and_other_ranges_are_scaled():
    wide = np.array([[0, 4095], [2048, 16]], dtype=np.uint16)
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # 12 bits each, big-endian
    little = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    entries = [
        (256, 3, 2), (257, 3, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 3, 2), (279, 4, len(packed)),
    ]  # fmt: skip
    little += struct.pack("<H", len(entries))
    little += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    twelve = decode_image(little + bytes(4), 1)[:, :, 0]
    assert np.abs(twelve.astype(int) - wide / 4095 * 255).max() <= 0.5
    pgm = b"P5 2 2 4095\n" + wide.astype(">u2").tobytes()
    assert np.abs(decode_image(pgm, 1)[:, :, 0].astype(int) - wide / 4095 * 255).max() <= 1
    full = wide * 16
    inverted = b"II" + raw_little(full.astype("<u2").tobytes(), 16, 0)
    expected = 255 - np.round(full / 65535 * 255)
    assert np.array_equal(decode_image(inverted, 1)[:, :, 0], expected)


def raw_little(data, bits, photometric):
    entries = [
        (256, 3, 2), (257, 3, 2), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 3, 2), (279, 4, len(data)),
    ]  # fmt: skip
    body = b"*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    return body + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries) + bytes(4)


def test_large_images_are_converted_strip_by_strip(photo):
    whole = photo(1, 1300, 1024)
    for image in (Image.fromarray(whole), Image.fromarray(whole).convert("CMYK")):
        data = saved(image, "TIFF")
        assert np.array_equal(decode_image(data, 3), np.asarray(image.convert("RGB")))
        assert np.array_equal(decode_image(data, 1)[:, :, 0], np.asarray(image.convert("L")))


def test_a_header_is_enough_to_refuse_a_large_image():
    """Pillow decodes a whole PNG to find out whether it has an EXIF entry."""
    for read in (image_size, lambda data: decode_image(data, 3)):
        with pytest.raises(
            UnreadableImageError, match="12000 x 12000 pixels, more than 67,108,864"
        ):
            read(png_header(12000, 12000))


def test_tiff_that_lies_on_its_side(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(photo(3, 32, 48)), "TIFF", exif=exif)
    assert np.array_equal(decode_image(data, 3), np.rot90(photo(3, 32, 48), -1))
    assert image_size(data) == (48, 32)


def test_progressive_jpeg_with_too_many_scans(encoded):
    data = encoded(0, "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    last = data[start:-2]
    with pytest.raises(UnreadableImageError, match="progressive JPEG of more than 200 scans"):
        decode_image(data[:-2] + last * 200 + data[-2:], 3)


DAMAGED = """
import sys, threading, warnings
from sslkit.builtin.sources.decoding import decode_image
from sslkit.cli.standard_streams import show_warnings_in_one_line
show_warnings_in_one_line()
good, bad = (open(path, "rb").read() for path in sys.argv[1:])
def work(data, name):
    for _ in range(20):
        decode_image(data, 3, lambda: name)
threads = [threading.Thread(target=work, args=args) for args in
           ((bad, "bad-1"), (good, "good-1"), (bad, "bad-2"), (good, "good-2"))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import ctypes
c = ctypes.CDLL(None)
c.fputs(b"from elsewhere\\n", ctypes.c_void_p.in_dll(c, "stderr"))
"""


@pytest.mark.slow  # 8 seconds
def test_what_libjpeg_prints_is_one_line_with_the_name_of_the_file(photo, tmp_path):
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    good = saved(Image.fromarray(noisy), "JPEG")
    (tmp_path / "good").write_bytes(good)
    (tmp_path / "bad").write_bytes(good[:-400] + good[-2:])
    command = [sys.executable, "-c", DAMAGED, str(tmp_path / "good"), str(tmp_path / "bad")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, last = done.stderr.splitlines()
    message = "Corrupt JPEG data: premature end of data segment; it is used as it was decoded"
    assert sorted(lines) == [f"warning: bad-1: {message}", f"warning: bad-2: {message}"]
    assert last == "from elsewhere"


PEAK = """
import re, sys
from sslkit.builtin.sources.decoding import decode_image, image_size
from sslkit.api import UnreadableImageError
def peak():  # of this program; `ru_maxrss` would begin with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
decode_image(open(sys.argv[2], "rb").read(), 3)  # what the decoders take by themselves
before = peak()
data = open(sys.argv[1], "rb").read()
for read in (image_size, lambda data: decode_image(data, 1), lambda data: decode_image(data, 3)):
    try:
        read(data)
    except UnreadableImageError as error:
        print(error)
print("MB", (peak() - before) // 1024)
"""


def zlib_chunk(name, body):
    packed = struct.pack(">I", len(body)) + name + body
    return packed + struct.pack(">I", zlib.crc32(name + body))


def bomb_png(width, height, depth, colour, *extra):
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = zlib.compressobj(9)
    line = bytes(1 + width * samples * depth // 8)
    pixels = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [zlib_chunk(b"IHDR", header), *extra]
    parts += [zlib_chunk(b"PLTE", bytes(6))] if colour == 3 else []
    parts += [zlib_chunk(b"IDAT", pixels), zlib_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(name, photo):
    side = 8192  # the largest that is read
    grey = Image.new("L", (side, side))
    turned = Image.Exif()
    turned[0x0112] = 6
    packed = zlib.compress(bytes(1 << 28), 9)
    small = Image.fromarray(photo(0))
    return {
        "16-bit PNG": lambda: bomb_png(side, side, 16, 0),
        "palette PNG": lambda: bomb_png(side, side, 1, 3),
        "RGBA PNG": lambda: bomb_png(side, side, 8, 6),
        "larger PNG": lambda: bomb_png(13000, 13000, 1, 0),
        "text PNG": lambda: bomb_png(8, 8, 8, 0, zlib_chunk(b"zTXt", b"a\0\0" + packed)),
        "profile PNG": lambda: bomb_png(8, 8, 8, 0, zlib_chunk(b"iCCP", b"a\0\0" + packed)),
        "turned JPEG": lambda: saved(grey.convert("RGB"), "JPEG", exif=turned),
        "progressive JPEG": lambda: saved(grey.convert("RGB"), "JPEG", progressive=True),
        "GIF of many frames": lambda: saved(
            grey.resize((2048, 2048)), "GIF", save_all=True, append_images=[grey] * 3
        ),
        "TIFF of many frames": lambda: saved(
            small, "TIFF", save_all=True, append_images=[grey] * 3, compression="tiff_deflate"
        ),
        "WebP": lambda: saved(grey.crop((0, 0, side, side // 2)), "WEBP", lossless=True, method=0),
        "larger WebP": lambda: saved(grey, "WEBP", lossless=True, method=0),
    }[name]()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "16-bit PNG", "palette PNG", "RGBA PNG", "larger PNG", "text PNG", "profile PNG",
        "turned JPEG", "progressive JPEG", "GIF of many frames", "TIFF of many frames", "WebP",
        "larger WebP",
    ],
)  # fmt: skip
def test_no_file_takes_a_gigabyte(name, photo, encoded, tmp_path):
    """Slow: a process of its own for each, which decodes the largest images that are read."""
    (tmp_path / "bomb").write_bytes(bomb(name, photo))
    (tmp_path / "plain").write_bytes(encoded(0, "JPEG"))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "bomb"), str(tmp_path / "plain")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1000, (name, done.stdout)
    assert not done.stderr
