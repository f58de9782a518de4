"""Metrics of other test splits like the one at hand: the bootstrap over images (Efron 1979).

Shapes: M test images, R resamples, r of these that are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.randomness import SampleRandom

RESAMPLES = 1000
"""Test splits that are drawn. Their deviation is then known to 2 %."""
_BLOCK_ELEMENTS = 1 << 22
"""Values held at once; the resamples of a block follow from the shapes."""


def resample(
    metric: Callable[[Tensor], Tensor], num_images: int, seed: int, *, width: int = 1
) -> Tensor:
    """(R, ...) values of a metric on `RESAMPLES` test splits of as many images, drawn from this one
    with replacement. Which images are drawn depends on the seed, the resample and the number of
    images alone: subjects that are measured on the same images get the same splits, so that values
    can be subtracted.

    metric: from (r, M) float64, how often each image was drawn, to (r, ...). width: numbers that
    the metric holds for each resample, if more than M; it bounds memory."""
    size = max(1, _BLOCK_ELEMENTS // max(num_images, width))
    parts = []
    for draws in torch.split(torch.arange(RESAMPLES), size):
        images = SampleRandom(seed, "resampling", 0, draws).integers(
            "image", num_images, num_images
        )
        counts = torch.zeros(len(draws), num_images, dtype=torch.float64)
        parts.append(metric(counts.scatter_add_(1, images, torch.ones_like(counts))))
    return torch.cat(parts)
