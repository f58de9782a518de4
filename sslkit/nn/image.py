"""Geometry and filters on whole batches, each sample with its own parameters.

Everything here is a pure function of its arguments: no generator, no value read back from the
device, shapes known beforehand. Results equal torchvision's functionals applied image by image
(float path), to rounding.

Shapes: B samples, C channels, H x W pixels of the source, S pixels of a side of the result,
K taps of a filter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.randomness import SampleRandom

Interpolation = Literal["bilinear", "bicubic"]
"""Filter of a resize, antialiased."""

_CHUNK_VALUES = 2**19
"""Values that `crop_resize` works on at a time in eager mode on a CPU: they, and what is made of
them on the way, stay in the cache, which measured up to twice as fast as whole batches."""


def _triangle(x: Tensor) -> Tensor:
    return (1.0 - x.abs()).clamp_min(0.0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, as Pillow and antialiased torch use it."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


_FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
"""name -> (kernel, half of its width in pixels)"""


def _resize_taps(
    start: Tensor,  # (B,) first pixel of the crop along this axis
    length: Tensor,  # (B,) pixels of the crop along this axis
    mirror: Tensor | None,  # (B,) bool
    source: int,
    size: int,
    interpolation: Interpolation,
) -> tuple[Tensor, Tensor]:
    """Which source pixels, and with which weights, make each of `size` output pixels: two tensors
    (B, size, K). K depends on shapes only: it is what the largest possible crop needs."""
    kernel, radius = _FILTERS[interpolation]
    num_taps = math.ceil(2.0 * radius * max(1.0, source / size))
    scale = (length / size)[:, None]
    stretch = scale.clamp_min(1.0)  # antialiasing: the kernel widens where the image shrinks
    position = torch.arange(size, dtype=torch.float32, device=start.device)[None, :]
    if mirror is not None:
        position = torch.where(mirror[:, None], size - 1 - position, position)
    centre = (position + 0.5) * scale
    first = torch.ceil(centre - radius * stretch - 0.5)
    taps = first[:, :, None] + torch.arange(num_taps, dtype=torch.float32, device=start.device)
    weights = kernel((taps + 0.5 - centre[:, :, None]) / stretch[:, :, None])
    last = length[:, None, None] - 1.0
    weights = torch.where((taps >= 0.0) & (taps <= last), weights, 0.0)
    weights = weights / weights.sum(dim=2, keepdim=True)
    pixels = taps.clamp_min(0.0).minimum(last) + start[:, None, None]
    return pixels.long(), weights


def _stored(planes: Sequence[Tensor]) -> Tensor:
    """C tensors (B, H, W) as (B, C, H, W). A compiler writes what is stacked to memory, which is
    wanted where it would otherwise compute it again for each of its uses."""
    return torch.stack(list(planes), dim=1)


def _turned(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, W, H); compiled, in memory too."""
    if torch.compiler.is_compiling():
        return _stored([plane.transpose(1, 2) for plane in images.unbind(1)])
    return images.transpose(2, 3)


def _mix_rows(images: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """(B, C, H, W), rows and weights (B, S, K) -> (B, C, S, W) float: each output row is a weighted
    sum of K rows of the same sample and channel.

    In eager mode that is an embedding bag, whose kernels read whole rows with vector instructions:
    three times as fast as dense weight matrices at 32 px and more above. To a compiler it would be
    a closed box; of plain sums it makes one loop over rows, twice as fast again.
    """
    if torch.compiler.is_compiling():
        return _sum_rows(images, rows, weights)
    num, channels, height, width = images.shape
    size, num_taps = rows.shape[1:]
    first_row = torch.arange(num * channels, device=images.device) * height
    index = rows[:, None] + first_row.view(num, channels, 1, 1)
    weight = weights[:, None].expand(num, channels, size, num_taps)
    mixed = F.embedding_bag(
        index.reshape(-1, num_taps),
        images.float().reshape(num * channels * height, width),
        per_sample_weights=weight.reshape(-1, num_taps),
        mode="sum",
    )
    return mixed.view(num, channels, size, width)


def _sum_rows(images: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    sample = torch.arange(len(images), device=images.device)[:, None]
    row_of_tap = _stored(rows.unbind(2)).unbind(1)
    weight_of_tap = _stored(weights[..., None].unbind(2)).unbind(1)

    def mixed(plane: Tensor) -> Tensor:
        taps = zip(row_of_tap, weight_of_tap, strict=True)
        return functools.reduce(torch.add, (plane[sample, row] * weight for row, weight in taps))

    return _stored([mixed(plane) for plane in images.unbind(1)])


def _crop_resize(
    images: Tensor, box: Tensor, flip: Tensor, sides: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    height, width = images.shape[-2:]
    top, left, tall, wide = box.unbind(1)
    rows, row_weights = _resize_taps(top, tall, None, height, sides[0], interpolation)
    columns, column_weights = _resize_taps(left, wide, flip, width, sides[1], interpolation)
    if images.dtype == torch.uint8:
        row_weights = row_weights / 255.0
    squeezed = _mix_rows(images, rows, row_weights)
    mixed = _mix_rows(_turned(squeezed), columns, column_weights)
    return _turned(mixed.clamp_(0.0, 1.0))


def crop_resize(
    images: Tensor,
    box: Tensor,
    flip: Tensor,
    size: int | tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Cuts a box out of each image, resizes it with antialiasing and mirrors it where asked.

    images: (B, C, H, W) uint8, or float in [0, 1]. box: (B, 4) top, left, height, width in whole
    source pixels, inside the image. flip: (B,) bool. size: the side of a square, or (height,
    width). Returns (B, C, size, size), or (B, C, *size), float32 in [0, 1].
    Equal to torchvision's `resized_crop(image, *box, size, antialias=True)` of each float image:
    the filter is clamped and normalised at the edges of the crop. Bicubic overshoots are clamped.
    """
    box, flip = box.to(images.device, torch.float32), flip.to(images.device)
    sides = (size, size) if isinstance(size, int) else size
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return _crop_resize(images, box, flip, sides, interpolation).contiguous()
    num, channels = images.shape[:2]
    result = torch.empty(num, channels, *sides)
    step = max(1, _CHUNK_VALUES // math.prod(images.shape[1:]))
    for begin in range(0, num, step):
        part = slice(begin, begin + step)
        result[part] = _crop_resize(images[part], box[part], flip[part], sides, interpolation)
    return result


def random_resized_crop_boxes(
    random: SampleRandom,
    sizes: Tensor,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0),
) -> Tensor:
    """Boxes of torchvision's `RandomResizedCrop.get_params`, one per sample.

    sizes: (B, 2) height and width. scale: range of the area, as a fraction of the image's. ratio:
    range of width / height, log-uniform. Returns (B, 4) float32: top, left, height, width, whole
    numbers. All ten tries are drawn at once and the first that fits is taken; where none does, the
    largest central box within the range of ratios. In float64, so that no rounding depends on
    where in a batch a sample stands.
    """
    height, width = (side[:, None] for side in sizes.double().unbind(1))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * random.uniform("crop_area", 10).double().mul(
        scale[1] - scale[0]
    ).add(scale[0])  # fmt: skip
    aspect = torch.exp(low + (high - low) * random.uniform("crop_ratio", 10).double())
    tries_w, tries_h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (tries_w >= 1) & (tries_w <= width) & (tries_h >= 1) & (tries_h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    any_fits = fits.any(dim=1, keepdim=True)

    central_w = torch.minimum(width, (height * ratio[1]).round())
    central_h = torch.minimum(height, (width / ratio[0]).round())
    crop_w = torch.where(any_fits, tries_w.gather(1, first), central_w)
    crop_h = torch.where(any_fits, tries_h.gather(1, first), central_h)

    room_y, room_x = (height - crop_h).long(), (width - crop_w).long()
    top = (random.bits("crop_top", 1) * (room_y + 1)) >> 32
    left = (random.bits("crop_left", 1) * (room_x + 1)) >> 32
    top = torch.where(any_fits, top, room_y // 2)
    left = torch.where(any_fits, left, room_x // 2)
    return torch.cat([top, left, crop_h.long(), crop_w.long()], dim=1).float()


def _precise(values: Tensor) -> Tensor:
    """In float64 where the device has it. Vector and scalar code may differ in the last bit of a
    float32 exponential or sine, and which of them a sample meets depends on its place in the batch.
    """
    return values if values.device.type == "mps" else values.double()


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Inverts the values from `threshold` on: x -> 1 - x where x >= threshold."""
    return torch.where(images >= threshold, 1.0 - images, images)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blurs each image with its own sigma (B,), in pixels; the borders are reflected.

    kernel_size is odd and less than twice the side: torchvision's `gaussian_blur`, as two passes.
    """
    height, width = images.shape[-2:]
    radius = kernel_size // 2
    offset = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offset / _precise(sigma)[:, None]).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).float()

    if torch.compiler.is_compiling():
        return _blur_by_shifts(images, weights).clamp_(0.0, 1.0)

    def taps(side: int) -> tuple[Tensor, Tensor]:
        pixel = torch.arange(side, device=images.device)[:, None] + offset
        pixel = (side - 1) - ((side - 1) - pixel.abs()).abs()  # mirrored at both ends
        shape = (len(images), side, kernel_size)
        return pixel.expand(shape), weights[:, None].expand(shape)

    turned = _turned(_mix_rows(images, *taps(height)))
    return _turned(_mix_rows(turned, *taps(width)).clamp_(0.0, 1.0)).contiguous()


def _blur_by_shifts(images: Tensor, weights: Tensor) -> Tensor:
    """The same as sums of shifted images, which a compiler turns into loops without indices. The
    two pixels at one distance have one weight."""
    radius = weights.shape[1] // 2
    weight_at = _stored(weights[:, radius:].reshape(-1, radius + 1, 1, 1, 1).unbind(1)).unbind(1)
    for dim in (2, 3):
        side = images.shape[dim]
        padded = _reflected(images, dim, radius)
        blurred = images * weight_at[0]
        for distance in range(1, radius + 1):
            left = padded.narrow(dim, radius - distance, side)
            right = padded.narrow(dim, radius + distance, side)
            blurred = blurred + (left + right) * weight_at[distance]
        images = _stored(blurred.unbind(1))
    return images


def _reflected(images: Tensor, dim: int, radius: int) -> Tensor:
    """Padded on both sides by `radius` with the mirror image, the border itself not repeated."""
    side = images.shape[dim]
    head = images.narrow(dim, 1, radius).flip(dim)
    tail = images.narrow(dim, side - 1 - radius, radius).flip(dim)
    return torch.cat([head, images, tail], dim=dim)


def rotate(
    images: Tensor,
    degrees: Tensor,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    fill: float = 0.0,
) -> Tensor:
    """Turns each image about its centre by its own angle (B,), counter-clockwise; what comes from
    outside is `fill`. Torchvision's `rotate`."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(_precise(degrees))
    cos, sin = (part.float()[:, None, None] for part in (angle.cos(), angle.sin()))
    x = (torch.arange(width, device=images.device) - (width - 1) / 2)[None, None, :]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[None, :, None]
    source_x = (cos * x - sin * y) / (0.5 * width)
    source_y = (sin * x + cos * y) / (0.5 * height)
    grid = torch.stack([source_x, source_y], dim=-1)
    # Torchvision samples a mask of ones along and weights with it once more at the border.
    padded = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
    sampled = F.grid_sample(padded, grid, interpolation, "zeros", align_corners=False)
    turned, inside = sampled[:, :-1], sampled[:, -1:]
    if interpolation == "nearest":
        return torch.where(inside < 0.5, fill, turned)
    return (turned * inside + (1.0 - inside) * fill).clamp_(0.0, 1.0)
