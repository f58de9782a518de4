"""How far a training on several ranks is from that of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BOUNDS = {
    "loss": 1e-10,
    "gradient": 1e-12,
    "state": 1e-12,
    "float32 loss": 1e-6,
    "float32 gradient": 1e-5,
}
"""What each of `differences` may be at most."""
_SMALL = 0.01
"""Magnitude below which a tensor is not measured by its own: a bias before a normalisation has no
gradient but rounding errors, and goes where they push it."""


def differences(found: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, float]:
    """Of a case that `curves` gave, on a rank and in one process: what `of_curve` says in float64,
    and the same of the first step in float32."""
    single = found["single"], alone["single"]
    return {
        **of_curve(found["double"], alone["double"]),
        "float32 loss": of_losses(*single),
        "float32 gradient": of_gradients(*single),
    }


def of_curve(found: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, float]:
    """- loss: the largest of all steps, relative to that of one process;
    - gradient: of the first step; state: parameters and buffers after the last step. The
      largest difference in a tensor by its largest magnitude, or by a hundredth (of a gradient:
      of the largest magnitude in the whole) where that is more; of all tensors the worst."""
    return {
        "loss": of_losses(found, alone),
        "gradient": of_gradients(found, alone),
        "state": of_tensors(found["state"], alone["state"], least=_SMALL),
    }


def of_losses(found: Mapping[str, Any], alone: Mapping[str, Any]) -> float:
    """See `of_curve`."""
    expected = alone["losses"].double()
    return float(((found["losses"].double() - expected) / expected).abs().max())


def of_gradients(found: Mapping[str, Any], alone: Mapping[str, Any]) -> float:
    """See `of_curve`."""
    largest = max(float(value.abs().max()) for value in alone["gradient"].values())
    return of_tensors(found["gradient"], alone["gradient"], least=_SMALL * largest)


def of_tensors(found: Mapping[str, Tensor], alone: Mapping[str, Tensor], *, least: float) -> float:
    """The largest difference in a tensor by its largest magnitude, at least `least`; infinite where
    other tensors are there."""
    if found.keys() != alone.keys():
        return torch.inf
    return max(_distance(found[name].double(), alone[name].double(), least) for name in alone)


def _distance(found: Tensor, alone: Tensor, least: float) -> float:
    if not alone.numel():
        return 0.0
    distance = (found - alone).abs().max() / alone.abs().max().clamp_min(least)
    return float(distance.nan_to_num(torch.inf))
