"""Precision and normalisation that losses and metrics share."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A scope in which operations on tensors like x keep the precision of their inputs."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # not on the meta device
    return torch.autocast(kind, enabled=False) if available else nullcontext()


def normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Rows of unit length, in full precision and outside autocast: (..., D) to (..., D).

    A row no longer than `eps` becomes zero, with zero gradient: it has no direction, and
    `torch.nn.functional.normalize` would multiply its gradient by 1 / eps.
    """
    with without_autocast(x):
        x = full_precision(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        unit: Tensor = x / norm.masked_fill(norm <= eps, math.inf)
        return unit
