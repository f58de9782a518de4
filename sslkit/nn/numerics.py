"""Precision and normalisation that losses and metrics share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
"""Number formats of activations; weights are float32 in all of them."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The scope in which networks compute in this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_HALF[precision])


@contextmanager
def exact_float32() -> Iterator[None]:
    """The scope in which float32 matrices and convolutions are multiplied in float32, and not in
    the shorter formats that torch may take for speed (TF32 on a GPU, for convolutions by default).
    """
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


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


def repeats_bits(device: torch.device) -> bool:
    """Whether a device gives the same bits for the same numbers."""
    return device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
