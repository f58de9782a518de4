"""Pieces of views on whole batches, each sample with its own parameters: pure functions, the same
on every device.

Shapes: B samples, C channels, L values of a series, S values of the result, K taps of the filter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslkit.randomness import philox, stream_key


def crop_resample(
    series: Tensor, start: Tensor, width: Tensor, flip: Tensor, length: int
) -> Tensor:
    """Cuts a part out of each series, resamples it and reverses it in time where asked.

    series: (B, C, L) floating-point. start, width: (B,) int64, the first value of the part and the
    number of its values, inside the series. flip: (B,) bool. Returns (B, C, length). The filter is
    a triangle, which widens where a part is shrunk (against aliasing) and is cut off and normalised
    at the edges of the part: equal to torch's bilinear `interpolate(..., antialias=True)` of each
    part as an image of one row.
    """
    place = torch.arange(length, device=series.device)
    place = torch.where(flip[:, None], length - 1 - place, place)
    scale = (width.to(_precise(series.device)) / length)[:, None]
    stretch = scale.clamp_min(1.0)
    centre = (place + 0.5) * scale
    num_taps = math.ceil(2.0 * max(1.0, series.shape[-1] / length))  # what the whole series needs
    first = torch.ceil(centre - stretch - 0.5)
    taps = first[:, :, None] + torch.arange(num_taps, device=series.device)
    distance = (taps + 0.5 - centre[:, :, None]) / stretch[:, :, None]
    last = (width - 1)[:, None, None]
    weights = torch.where((taps >= 0) & (taps <= last), (1.0 - distance.abs()).clamp_min(0.0), 0.0)
    weights = (weights / weights.sum(dim=2, keepdim=True)).to(series.dtype)
    source = (taps.clamp_min(0).minimum(last) + start[:, None, None]).long()
    index = source.flatten(1)[:, None].expand(-1, series.shape[1], -1)
    picked = series.gather(2, index).view(*series.shape[:2], length, num_taps)
    return (picked * weights[:, None]).sum(dim=3)


def keyed_normal(words: Tensor, count: int) -> Tensor:
    """(B, count) float32: independent normal values, a function of each row's words alone.

    words: (B, 2) int64 that hold 32-bit words. Box-Muller on Philox4x32-10, whose counter they are.
    """
    block = torch.arange((count + 3) // 4, device=words.device)[None]
    counter = (words[:, :1], words[:, 1:], torch.zeros_like(block), block)
    precise = _precise(words.device)
    made = philox(counter, stream_key(0, "sslkit_series", "normal"))
    unit = [((word >> 8).to(precise) + 0.5) * 2.0**-24 for word in made]
    pairs = ((unit[0], unit[1]), (unit[2], unit[3]))
    values = [
        torch.sqrt(-2.0 * torch.log(radius)) * wave(2.0 * math.pi * angle)
        for radius, angle in pairs
        for wave in (torch.cos, torch.sin)
    ]
    return torch.stack(values, dim=2).flatten(1)[:, :count].float()


def _precise(device: torch.device) -> torch.dtype:
    """float64, where the device has it. Vector and scalar code may differ in the last bit of a
    float32 logarithm, and which of them a sample meets depends on its place in the batch."""
    return torch.float32 if device.type == "mps" else torch.float64
