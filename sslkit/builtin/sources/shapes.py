"""Drawing of textured shapes on a shaded background.

Shapes are implicit functions of position, negative inside and growing by about one per unit of
length, which gives antialiased edges without supersampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""(S, S) values of one quantity at every pixel."""

SHAPES = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "bar")
TEXTURES = ("plain", "stripes", "checks", "dots")


@dataclass(frozen=True)
class Scene:
    """One scene. `details` are uniform numbers in [0, 1) for everything that is not a factor."""

    NUM_DETAILS: ClassVar[int] = 12

    shape: str
    texture: str
    hue: float
    """Centre of the colour's range of hues, 0 to 1."""
    column: int
    """0 left, 1 right."""
    row: int
    """0 top, 1 bottom."""
    scale: int
    """0 small to 2 large."""
    details: NDArray[np.float32]


def render(scene: Scene, size: int, channels: int) -> NDArray[np.float32]:
    """(size, size, channels) float32 in [0, 1]."""
    d = [float(value) for value in scene.details]
    x, y = grid(size)
    radius = (0.30, 0.42, 0.54)[scene.scale] * (0.92 + 0.16 * d[0])
    free = 1.0 - radius
    centre_x = min(free, 0.12 + 0.3 * d[1]) * (1.0 if scene.column else -1.0)
    centre_y = min(free, 0.12 + 0.3 * d[2]) * (1.0 if scene.row else -1.0)
    angle = (d[3] - 0.5) * math.radians(50.0)
    cover = coverage(scene.shape, x - centre_x, y - centre_y, radius, angle, size)[:, :, None]
    front = surface(scene.texture, scene.hue, x, y, d[4:9])
    return in_channels(background(x, y, d[9:]) * (1.0 - cover) + front * cover, channels)


def grid(size: int) -> tuple[Field, Field]:
    """x and y of the centres of the pixels, each (size, size), from -1 to 1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def coverage(shape: str, x: Field, y: Field, radius: float, angle: float, size: int) -> Field:
    """(size, size): the part of each pixel that a shape around the origin covers, 0 to 1."""
    u, v = _turned(x, y, angle)
    edge = _SHAPE_FUNCTIONS[shape](u / radius, v / radius) * radius
    cover: Field = np.clip(0.5 - edge * (size / 2.0), 0.0, 1.0)
    return cover


def surface(texture: str, hue: float, x: Field, y: Field, d: Sequence[float]) -> Field:
    """(S, S, 3): the texture in two tones of the hue. d: five details in [0, 1)."""
    pattern = _texture(texture, *_turned(x, y, d[0] * math.pi), phase=d[1])[:, :, None]
    # Hues stay within 0.4 of the width of their range, so that colours remain apart.
    hue = hue + (d[2] - 0.5) * 0.1
    light = _rgb(hue, 0.75 + 0.25 * d[3], 0.75 + 0.25 * d[4])
    dark = light * (0.25 + 0.2 * d[3])
    tones: Field = light * pattern + dark * (1.0 - pattern)
    return tones


def in_channels(pixels: Field, channels: int) -> NDArray[np.float32]:
    """RGB (S, S, 3), or its grey values (S, S, 1), as float32."""
    if channels == 1:
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]])
    result: NDArray[np.float32] = pixels.astype(np.float32)
    return result


def background(x: Field, y: Field, d: Sequence[float]) -> Field:
    """(S, S, 3): a gradient between two muted colours that do not depend on the shape's. d: three
    details in [0, 1)."""
    along = (_turned(x, y, d[0] * 2.0 * math.pi)[0] / math.sqrt(2.0) + 1.0)[:, :, None] / 2.0
    first = _rgb(d[1], 0.35, 0.25 + 0.5 * d[2])
    second = _rgb(d[1] + 0.3 + 0.4 * d[2], 0.35, 0.75 - 0.5 * d[0])
    blend: Field = first * (1.0 - along) + second * along
    return blend


def _turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    """(3,) RGB of a colour in HSV, each in [0, 1]; the hue wraps around."""
    sector = (np.array([5.0, 3.0, 1.0]) + hue * 6.0) % 6.0
    part = np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    return (value * (1.0 - saturation * part)).astype(np.float32)


def _texture(name: str, u: Field, v: Field, phase: float) -> Field:
    """(S, S) in [0, 1]: 1 where the light tone is."""
    period = 0.26
    a, b = u / period + phase, v / period + phase
    if name == "plain":
        return np.ones_like(u)
    if name == "stripes":
        return _soft(np.sin(2.0 * math.pi * a))
    if name == "checks":
        return _soft(np.sin(math.pi * a) * np.sin(math.pi * b) * 2.0)
    return _soft(1.3 - 2.6 * np.hypot(a % 1.0 - 0.5, b % 1.0 - 0.5) / 0.5)  # dots


def _soft(wave: Field) -> Field:
    soft: Field = np.clip(0.5 + 1.5 * wave, 0.0, 1.0)
    return soft


def _box(u: Field, v: Field, width: float, height: float) -> Field:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _polygon(u: Field, v: Field, corners: int) -> Field:
    """A regular polygon with unit circumradius, one corner up."""
    step = 2.0 * math.pi / corners
    angle = np.arctan2(u, -v)
    nearest = (np.floor(angle / step) + 0.5) * step
    return np.hypot(u, v) * np.cos(angle - nearest) - math.cos(step / 2.0)


def _star(u: Field, v: Field) -> Field:
    """Five points: the edge runs straight between radius 1 at the points and 0.42 between them."""
    step = 2.0 * math.pi / 5.0
    angle = np.abs((np.arctan2(u, -v) + step / 2.0) % step - step / 2.0)
    r = np.hypot(u, v)
    inner_x, inner_y = 0.42 * math.cos(step / 2.0), 0.42 * math.sin(step / 2.0)
    normal_x, normal_y = inner_y, 1.0 - inner_x
    length = math.hypot(normal_x, normal_y)
    return ((r * np.cos(angle) - 1.0) * normal_x + r * np.sin(angle) * normal_y) / length


_SHAPE_FUNCTIONS: dict[str, Callable[[Field, Field], Field]] = {
    "disc": lambda u, v: np.hypot(u, v) - 0.9,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.24,
    "square": lambda u, v: _box(u, v, 0.78, 0.78),
    "triangle": lambda u, v: _polygon(u, v, 3),
    "star": _star,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.75 - np.hypot(u - 0.45, v)),
    "bar": lambda u, v: _box(u, v, 1.0, 0.34),
}
