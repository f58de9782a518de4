"""What half precision costs on the CPU of this machine, found by trying it."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch.nn.functional import conv2d

from sslkit.nn.numerics import Precision, autocast
from sslkit.threads import alone

_IMAGES, _CHANNELS, _SIZE = 4, 32, 16
"""A small convolution: three of it take milliseconds, and tell what large ones do."""
_TRIES = 3


@cache
def cost_on_cpu(precision: Precision) -> float:
    """How long a convolution, forward and backward, takes in this precision, in units of float32.

    Below 1 on a CPU that has instructions for it, and several times as long on one that has none,
    where torch computes in software."""
    return 1.0 if precision == "fp32" else _seconds(precision) / _seconds("fp32")


def _seconds(precision: Precision) -> float:
    """The least of a few tries, after a first one that allocates: CPU time of one thread, on which
    other work on the machine has little influence."""
    shape = (_IMAGES, _CHANNELS, _SIZE, _SIZE)
    images = torch.full(shape, 0.5).contiguous(memory_format=torch.channels_last)
    weight = torch.full((_CHANNELS, _CHANNELS, 3, 3), 0.5, requires_grad=True)
    taken = []
    with alone(), torch.enable_grad(), autocast(images.device, precision):
        for _ in range(1 + _TRIES):
            start = time.thread_time()
            torch.autograd.grad(conv2d(images, weight, padding=1).sum(), weight)
            taken.append(time.thread_time() - start)
    return min(taken[1:])
