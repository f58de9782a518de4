"""What half precision costs on the CPU of this machine, found by trying it."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch.nn.functional import conv2d

from sslkit.nn.numerics import Precision, autocast

_IMAGES, _CHANNELS, _SIZE = 4, 32, 16
"""A small convolution: three of it take milliseconds, and tell what large ones do."""
_TRIES = 3


@cache
def cost_on_cpu(precision: Precision) -> float:
    """How long a convolution, forward and backward, takes in this precision, in units of float32.

    A third or less on a CPU that has instructions for it, and many times as long on one that has
    none, where torch computes in software. Other work on the machine moves it by some tenths."""
    return 1.0 if precision == "fp32" else _seconds(precision) / _seconds("fp32")


def _seconds(precision: Precision) -> float:
    """The least time of a few tries, after a first one that allocates."""
    shape = (_IMAGES, _CHANNELS, _SIZE, _SIZE)
    images = torch.full(shape, 0.5).contiguous(memory_format=torch.channels_last)
    weight = torch.full((_CHANNELS, _CHANNELS, 3, 3), 0.5, requires_grad=True)
    taken = []
    for _ in range(1 + _TRIES):
        start = time.perf_counter()
        with torch.enable_grad(), autocast(images.device, precision):
            torch.autograd.grad(conv2d(images, weight, padding=1).sum(), weight)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
