"""Random directions that serve a whole batch: a function of the seed, a name and the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslkit.api import LossInput
from sslkit.nn.numerics import normalize
from sslkit.randomness import SampleRandom


def unit_directions(inputs: LossInput, stream: str, count: int) -> Tensor:
    """(D, count) columns of unit length, uniform on the sphere, for views (B, D): the same on every
    rank and device up to rounding, others in each step, and those of its step after a resume.

    Normal numbers by Box and Muller 1958 from the words of (seed, stream, step, column). Outside a
    run, without progress, they are those of the first step. Raises ValueError without random
    numbers."""
    if inputs.random is None:
        raise ValueError(f"{stream} needs the random numbers of the images, and got none")
    like, step = inputs.views[0], inputs.progress.step if inputs.progress else 0
    columns = torch.arange(count, device=like.device)
    half = (like.shape[1] + 1) // 2
    bits = SampleRandom(inputs.random.seed, stream, step, columns).bits("directions", 2 * half)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    uniform = ((bits >> 8).to(dtype) + 0.5) * 2.0**-24  # in (0, 1), so that its logarithm is finite
    radius, angle = (-2.0 * uniform[:, :half].log()).sqrt(), 2.0 * math.pi * uniform[:, half:]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normalize(normal[:, : like.shape[1]]).T
